"""A block that still grows: the lines of it that are final, and the text that goes on without them.

The text that is left begins with lines that open the same containers again, each with a rule that is not drawn; the
parser then reads the rest as it would read the whole. A leaf that is divided has its first lines there once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it.token import Token

from mistralrs_cli.markdown_screen.block_layout import CONTINUES, PLACEHOLDER, begin_of, end_of, first_number, has_blank
from mistralrs_cli.markdown_screen.markdown_parser import INDENT, LISTS, Run, first_lines, top_level
from mistralrs_cli.markdown_screen.table_layout import TableShape

MOST_LINES = 64
"""Lines of one paragraph, of one part of HTML or of code in a list, and rows of one table at most."""
_RULE = "___"
_QUOTATION = "> "
_MOST_BEFORE_MARK = 3
"""Spaces that may be before the mark of an item."""
_REPEATED = {"fence": 1, "html_block": 1, "table_open": 2}
"""The first lines of a leaf that its rest needs."""


@dataclass(frozen=True, slots=True)
class Level:
    """A container whose beginning is final."""

    opening: str
    """Its mark and the spaces around it: as many columns as the text in it is indented by."""
    number: int | None = None
    """That of a list's item; None: it is a quotation."""


@dataclass(frozen=True, slots=True)
class Division:
    """The place at which a block is divided."""

    end: int
    """The line before which all is final."""
    levels: tuple[Level, ...] = ()
    """The containers that go on, the outermost first."""
    number: int | None = None
    """The number of the item that the rest begins with; None: it begins with none."""
    gap: bool = False
    """A blank line is before the rest, and not in it."""
    leaf: str = ""
    """The lines that open the divided leaf again."""
    shape: TableShape | None = None
    """The columns of the table that goes on."""

    def prefix(self) -> str:
        """Returns the marks and spaces before a line within the innermost container."""
        return "".join(_QUOTATION if each.number is None else " " * len(each.opening) for each in self.levels)

    def opening(self) -> str:
        """Returns the lines before the rest."""
        prefix = lines = ""
        for level in self.levels:
            lines += f"{prefix}{level.opening}{_RULE}\n"
            prefix += _QUOTATION if level.number is None else " " * len(level.opening)
        lines += f"{prefix.rstrip()}\n" if self.gap else ""
        return lines + "".join(f"{prefix}{line}\n" for line in self.leaf.splitlines())

    def mark(self, run: Run) -> None:
        """Marks the blocks of the rest that are drawn already, in part or as a whole."""
        block: Run | None = run
        for level in self.levels:
            if block is None:
                return
            container = block
            if level.number is not None:
                block[0].attrs["start"] = level.number
                container = top_level(block[1:-1])[0]
            container[0].meta[CONTINUES] = True
            placeholder, *following = top_level(container[1:-1])
            placeholder[0].meta[PLACEHOLDER] = True
            block = following[0] if following else None
        if block is not None and self.number is not None:
            block[0].attrs["start"] = self.number
        if block is not None and self.leaf:
            block[0].meta[CONTINUES] = self.shape or True


def divide(run: Run, lines: Sequence[str]) -> Division | None:
    """Returns the last place in a block before which nothing changes any more, whatever follows; None: there is none.

    That is before the last item of a list, or before the last block within the last item or a quotation.
    """
    levels: list[Level] = []
    found = None
    block = run
    while (container := _last_container(block)) is not None:
        number = None
        if block[0].type in LISTS:
            items = top_level(block[1:-1])
            number = first_number(block[0]) + len(items) - 1
            if len(items) > 1:
                found = _behind(items[-2], lines, levels, number=number)
        blocks = top_level(container[1:-1])
        if not blocks:
            break
        levels.append(Level(_opening(container, levels), number))
        if any(map(_is_drawn, blocks[:-1])) and PLACEHOLDER not in blocks[-2][0].meta:
            found = _behind(blocks[-2], lines, levels, number=None)
        block = blocks[-1]
    return found


def divide_leaf(run: Run, lines: Sequence[str]) -> Division | None:
    """Returns the place at which the last leaf of a block is too long; None: it is short enough."""
    block, levels = _last_leaf(run)
    if block is None:
        return None
    repeated = _REPEATED.get(block[0].type, 0)
    end = begin_of(block) + repeated + MOST_LINES
    if end >= end_of(block, lines):
        return None
    return Division(end, levels, leaf="".join(f"{line}\n" for line in first_lines(block, repeated)))


def divide_paragraph(run: Run, lines: Sequence[str]) -> Division | None:
    """Returns the place behind the last line, after which a paragraph goes on; None: the last leaf is none."""
    block, levels = _last_leaf(run)
    if block is None or block[0].type != "paragraph_open" or end_of(block, lines) != len(lines):
        return None
    return Division(len(lines), levels)


def _last_leaf(run: Run) -> tuple[Run | None, tuple[Level, ...]]:
    """Returns the last block that is no container, and the containers around it; None: the last one is empty."""
    levels: list[Level] = []
    block = run
    while (container := _last_container(block)) is not None:
        number = first_number(block[0]) + len(top_level(block[1:-1])) - 1 if block[0].type in LISTS else None
        levels.append(Level(_opening(container, levels) if len(container) > 2 else "", number))
        blocks = top_level(container[1:-1])
        if not blocks:
            return None, ()
        block = blocks[-1]
    return block, tuple(levels)


def _behind(block: Run, lines: Sequence[str], levels: Sequence[Level], *, number: int | None) -> Division:
    """Returns the place behind a block with all its marks."""
    end = _whole_end(block, lines)
    return Division(end, tuple(levels), number, gap=has_blank(lines[end_of(block, lines) : end]))


def _is_drawn(block: Run) -> bool:
    """Returns whether a block has lines: code may have none."""
    return block[0].type != "fence" or bool(block[0].content)


def _whole_end(block: Run, lines: Sequence[str]) -> int:
    """Returns the line after a block's last one, which may be the mark of a quotation alone."""
    end = end_of(block, lines)
    if block[0].type in ("blockquote_open", "fence"):
        assert block[0].map is not None
        return block[0].map[1]
    if block[0].type in (*LISTS, "list_item_open"):
        return max([end, *[_whole_end(each, lines) for each in top_level(block[1:-1])[-1:]]])
    return end


def _last_container(block: Run) -> Run | None:
    """Returns the last item of a list, or the quotation; None: the block is neither."""
    if block[0].type in LISTS:
        return top_level(block[1:-1])[-1]
    return block if block[0].type == "blockquote_open" else None


def _opening(container: Run, around: Sequence[Level]) -> str:
    token: Token = container[0]
    if token.type == "blockquote_open":
        return _QUOTATION
    mark = f"{token.info}{token.markup}"
    columns = int(token.meta[INDENT]) - _indent(around)
    before = max(0, min(_MOST_BEFORE_MARK, columns - len(mark) - 1))
    return (" " * before + mark).ljust(columns)


def _indent(levels: Sequence[Level]) -> int:
    """Returns the columns that the text in the innermost item is indented by, within the innermost quotation."""
    indent = 0
    for level in levels:
        indent = 0 if level.number is None else indent + len(level.opening)
    return indent
