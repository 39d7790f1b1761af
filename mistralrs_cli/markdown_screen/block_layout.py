"""The blocks of Markdown as lines for a terminal of some width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from markdown_it.token import Token
from rich.style import Style

from mistralrs_cli.markdown_screen.code_colors import GrowingCode
from mistralrs_cli.markdown_screen.inline_text import InlineText, drawn, safe
from mistralrs_cli.markdown_screen.markdown_parser import LISTS, MOST_KEPT, is_alone, top_level
from mistralrs_cli.markdown_screen.table_layout import Cell, TableShape, shape_of, table_lines
from mistralrs_cli.markdown_screen.theme import Theme
from mistralrs_cli.markdown_screen.word_wrap import PLAIN, Piece, wrap

BULLETS = "•◦▪"
LEAST_WIDTH = 10
"""Cells that the innermost block keeps in a narrow terminal."""
CONTINUES = "continues"
"""Stands in the ``meta`` of the first token of a block whose beginning is shown: the columns of a table, else True."""
PLACEHOLDER = "placeholder"
"""Stands in the ``meta`` of a block that takes the place of those that are shown."""
_RULE = "─"
_LONGEST_RULE = 40


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Lays blocks out in ``width`` cells; ``lines`` are those of the text that the tokens' maps count."""

    theme: Theme
    has_links: bool
    width: int
    depth: int = 0
    """The number of lists around."""
    kept: dict[tuple[str, int, Style], list[str]] = field(default_factory=dict)
    """Lines by their text, width and style: an open block is laid out again with each piece."""

    growing: GrowingCode = field(default_factory=GrowingCode)

    def blocks(self, runs: Sequence[Sequence[Token]], lines: Sequence[str], style: Style = PLAIN) -> list[str]:
        """Returns the lines of blocks one below the other, with a blank line where the text has one."""
        drawn_lines: list[str] = []
        end = None
        for run in runs:
            begin = begin_of(run)
            if end is not None and has_blank(lines[end:begin]):
                drawn_lines.append("")
            if PLACEHOLDER not in run[0].meta:
                drawn_lines += self.block(run, lines, style)
            end = end_of(run, lines)
        return drawn_lines

    def block(self, run: Sequence[Token], lines: Sequence[str], style: Style = PLAIN) -> list[str]:
        """Returns the lines of one block."""
        kind = run[0].type
        if kind == "paragraph_open":
            return self._text(run[1], style)
        if kind == "heading_open":
            level = int(run[0].tag[1:])
            return self._text(run[1], style + self.theme.heading + Style(underline=level == 1))
        if kind in ("fence", "code_block"):
            return self.code(run[0])
        if kind == "hr":
            return [drawn([Piece(_RULE * min(self.width, _LONGEST_RULE), self.theme.faint)])]
        if kind == "blockquote_open":
            inner = self._narrowed(2).blocks(top_level(run[1:-1]), lines, style + self.theme.faint)
            mark = drawn([Piece("│ ", self.theme.faint)])
            return [f"{mark}{line}" for line in inner] or ([] if CONTINUES in run[0].meta else [mark])
        if kind in LISTS:
            return self._items(run, lines, style)
        if kind == "table_open":
            return self._table(run)
        content = run[0].content  # html_block
        return self._raw(content.partition("\n")[2] if CONTINUES in run[0].meta else content, style)

    def _items(self, run: Sequence[Token], lines: Sequence[str], style: Style) -> list[str]:
        drawn_lines: list[str] = []
        end = None
        for number, item in enumerate(top_level(run[1:-1]), first_number(run[0])):
            if end is not None and has_blank(lines[end : begin_of(item)]):
                drawn_lines.append("")
            if run[0].type == "ordered_list_open":
                mark = f"{number}{run[0].markup}".rjust(3) + " "
            else:
                mark = f"{BULLETS[self.depth % len(BULLETS)]} "
            layout = replace(self._narrowed(len(mark)), depth=self.depth + 1)
            inner = layout.blocks(top_level(item[1:-1]), lines, style)
            if CONTINUES not in item[0].meta:
                first, *inner = inner or [""]
                drawn_lines.append(f"{mark}{first}")
            indent = " " * len(mark)
            drawn_lines += [f"{indent}{line}" if line else "" for line in inner]
            end = end_of(item, lines)
        return drawn_lines

    def code(self, token: Token) -> list[str]:
        """Returns the lines of a block of code, which may be wider than the terminal."""
        if not token.content:
            return []
        lines = safe(token.content).removesuffix("\n").split("\n")
        return self.growing.colored(lines, language_of(token.info), theme=self.theme.syntax)

    def _text(self, inline: Token, style: Style) -> list[str]:
        key = (inline.content, self.width, style)
        if key not in self.kept:
            pieces = InlineText(self.theme, self.has_links).pieces(inline.children or [], style)
            lines = [drawn(line) for line in wrap(pieces, self.width)]
            if not is_alone(inline.content):
                return lines
            if len(self.kept) > MOST_KEPT:
                self.kept.clear()
            self.kept[key] = lines
        return self.kept[key]

    def _raw(self, text: str, style: Style) -> list[str]:
        return [drawn(line) for line in wrap([Piece(safe(text).rstrip("\n"), style)], self.width)]

    def shape(self, run: Sequence[Token]) -> TableShape:
        """Returns the columns of a table."""
        return shape_of(self._rows(run), self.width)

    def _table(self, run: Sequence[Token]) -> list[str]:
        rows = self._rows(run)
        shape: TableShape | bool | None = run[0].meta.get(CONTINUES)
        continues = shape is not None
        if not isinstance(shape, TableShape) or shape.width != self.width:
            shape = shape_of(rows, self.width)
        return [drawn(line) for line in table_lines(rows, shape, rule=self.theme.faint, continues=continues)]

    def _rows(self, run: Sequence[Token]) -> list[list[Cell]]:
        inline = InlineText(self.theme, self.has_links)
        rows: list[list[Cell]] = []
        for place, token in enumerate(run):
            if token.type == "tr_open":
                rows.append([])
            elif token.type in ("th_open", "td_open"):
                style = self.theme.heading if token.type == "th_open" else PLAIN
                align = str(token.attrs.get("style", "")).removeprefix("text-align:")
                rows[-1].append(Cell(inline.pieces(run[place + 1].children or [], style), align))
        return rows

    def _narrowed(self, cells: int) -> BlockLayout:
        return replace(self, width=max(self.width - cells, LEAST_WIDTH))


def language_of(info: str) -> str:
    """Returns the language that a fence names; empty: none."""
    return safe(info).split(maxsplit=1)[0].strip("{}.").lower() if info.strip() else ""


def begin_of(run: Sequence[Token]) -> int:
    """Returns the number of a block's first line."""
    assert run[0].map is not None
    return run[0].map[0]


def end_of(run: Sequence[Token], lines: Sequence[str]) -> int:
    """Returns the number of the line after a block's last one that is not blank."""
    assert run[0].map is not None
    begin, end = run[0].map
    if run[0].type in ("code_block", "html_block"):
        return begin + run[0].content.rstrip().count("\n") + 1
    while end > begin + 1 and not lines[min(end, len(lines)) - 1].strip(" \t>"):
        end -= 1
    return end


def has_blank(lines: Sequence[str]) -> bool:
    """Returns whether a line is blank, but for the marks of quotations around it."""
    return any(not line.strip(" \t>") for line in lines)


def first_number(token: Token) -> int:
    """Returns the number of a list's first item."""
    return int(token.attrs.get("start", 1))
