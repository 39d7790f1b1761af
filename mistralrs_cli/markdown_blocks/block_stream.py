"""Splits Markdown that streams into lines that are final and those of the block that may still change."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from rich.style import Style

from mistralrs_cli.markdown_blocks.divided_block import MOST_LINES, Division, divide, divide_leaf, divide_paragraph
from mistralrs_cli.markdown_screen.block_layout import BlockLayout, begin_of, end_of, has_blank, language_of
from mistralrs_cli.markdown_screen.code_colors import CodeColors, GrowingCode
from mistralrs_cli.markdown_screen.inline_text import safe
from mistralrs_cli.markdown_screen.markdown_parser import LISTS, Definition, MarkdownParser, Run
from mistralrs_cli.markdown_screen.theme import Theme

LONGEST_PARAGRAPH = 4000
"""Characters after which a paragraph goes on as another one, so that a long answer stays quick."""
LONGEST_WORD = 400
"""Further characters to wait for a space there."""
_WINDOW = 256
"""Lines that are parsed at once."""
_CONTAINERS = (*LISTS, "blockquote_open")
_DIVIDED = (*_CONTAINERS, "table_open", "html_block", "code_block")
_MARKUP_ALONE = re.compile(r"[\s\-=*_#`~+|:>0-9.)\\$\[\](!]*")
"""The beginning of a line whose meaning the next characters decide."""


class BlockStream:
    """Takes Markdown in pieces. The lines do not depend on how the text was cut into pieces.

    All blocks but the last one are final: no later line changes them. Within a list, all items but the last one are,
    and so on within that and within a quotation. The lines of a block of code are final one by one.
    """

    def __init__(self, theme: Theme, *, has_links: bool) -> None:
        self.parser = MarkdownParser()
        self._theme, self._has_links = theme, has_links
        self._kept: dict[tuple[str, int, Style], list[str]] = {}
        self._growing = GrowingCode()
        self._text = ""
        """The text that is not final."""
        self._seen = 0
        """The characters of ``_text`` in which nothing is final."""
        self._code: _OpenCode | None = None
        self._division: Division | None = None
        """The way in which the block that ``_text`` begins with was divided; None: it was not."""
        self._gap = False
        """A blank line is before ``_text``."""
        self._began = False
        self._lines: list[str] = []
        """The lines that became final."""

    def feed(self, text: str) -> None:
        """Takes a piece of sanitized text."""
        self._text += text

    def take_final(self, width: int, *, ends: bool = False) -> list[str]:
        """Returns the further lines that are final. ``ends``: no text follows, and all of it is final."""
        if ends and self._text and not self._text.endswith("\n"):
            self._text += "\n"
        layout = self._layout(width)
        while self._take_code() if self._code else self._take_blocks(layout, ends=ends):
            pass
        final, self._lines = self._lines, []
        return final

    def open_lines(self, width: int) -> list[str]:
        """Returns the lines of the text that is not final."""
        if self._code is not None:
            line = self._code.partial(self._text)
            lines = [] if line is None else [line]
        else:
            text = self._text
            begin = text.rfind("\n") + 1
            if _MARKUP_ALONE.fullmatch(text, begin):
                text = text[:begin]
            runs, definitions = self._outline(text)
            lines = self._preview(runs, definitions, text.split("\n"), self._layout(width))
        return ["", *lines] if lines and self._began and self._leading_gap() else lines

    def _leading_gap(self) -> bool:
        return self._gap or (self._code is None and self._text[: self._text.find("\n") + 1].isspace())

    def _preview(
        self, runs: Sequence[Run], definitions: Sequence[Definition], lines: Sequence[str], layout: BlockLayout
    ) -> list[str]:
        known = self.parser.known
        self.parser.known = dict(known)
        for run in runs:
            self.parser.fill(run, definitions)
        self.parser.known = known
        return layout.blocks(runs, lines)

    def _outline(self, text: str) -> tuple[list[Run], list[Definition]]:
        """Returns the blocks of a text that begins where ``_text`` does, and the definitions in it."""
        runs, definitions = self.parser.outline(text)
        if runs and self._division is not None:
            self._division.mark(runs[0])
        return runs, definitions

    def _layout(self, width: int) -> BlockLayout:
        return BlockLayout(self._theme, self._has_links, width, kept=self._kept, growing=self._growing)

    def _emit(self, lines: Sequence[str], *, gap: bool) -> None:
        self._gap |= gap
        if lines:
            if self._gap and self._began:
                self._lines.append("")
            self._lines += lines
            self._gap, self._began = False, True

    def _take_code(self) -> bool:
        """Makes the complete lines of open code final; returns whether the code has ended."""
        assert self._code is not None
        *lines, rest = self._text.split("\n")
        for place, line in enumerate(lines):
            if self._code.ends(line):
                self._text = "\n".join([*lines[place + 1 :], rest])
                self._code = None
                return True
            self._emit([self._code.complete(line)], gap=False)
        self._text = rest
        return False

    def _take_blocks(self, layout: BlockLayout, *, ends: bool) -> bool:
        """Makes blocks final, as far as they are; returns whether further ones may be."""
        complete = self._text.rfind("\n") + 1
        if complete == self._seen and not (ends and complete):
            return self._cut_partial(layout)
        window = _WINDOW
        while True:
            end = _line_end(self._text, window, complete)
            is_whole = end == complete
            if self._take_from(self._text[:end], layout, ends=ends and is_whole):
                self._seen = 0
                return True
            if is_whole:
                self._seen = self._text.rfind("\n") + 1
                return self._cut_partial(layout)
            window *= 2

    def _take_from(self, text: str, layout: BlockLayout, *, ends: bool) -> bool:
        """Makes final what is so in ``text``, complete lines at the beginning; returns whether anything was."""
        lines = text.split("\n")[:-1]
        runs, definitions = self._outline(text)
        if not runs:
            if ends or (lines and not lines[-1].strip()):
                return self._drop(len(lines), lines, definitions, previous_end=0)
            return False
        previous_end = 0
        for place, run in enumerate(runs):
            begin = begin_of(run)
            gap = has_blank(lines[previous_end:begin])
            self._learn(definitions, before=begin)
            if (
                self._cut_paragraph(run, text, lines, layout, gap=gap)
                or self._cut_line(run, lines, layout, gap=gap)
                or self._cut_long(run, lines, layout, gap=gap)
            ):
                return True
            if place == len(runs) - 1 and not ends:
                return self._take_last(run, lines, layout, definitions, previous_end=previous_end)
            self._emit_block(run, lines, layout, definitions=definitions, gap=gap)
            previous_end = end_of(run, lines)
        return self._drop(len(lines), lines, definitions, previous_end=previous_end)

    def _take_last(
        self,
        run: Run,
        lines: Sequence[str],
        layout: BlockLayout,
        definitions: Sequence[Definition],
        *,
        previous_end: int,
    ) -> bool:
        """Handles the last block, which may still grow: lines of code are final, and all of a container but its end."""
        begin = begin_of(run)
        gap = has_blank(lines[previous_end:begin])
        if run[0].type == "fence":
            self._code = _OpenCode(
                lines[begin], run[0].markup, CodeColors(language_of(run[0].info), self._theme.syntax)
            )
            self._gap |= gap
            self._division = None
            self._remove(begin + 1)
            return True
        if (division := divide(run, lines)) is not None:
            self._cut(division, lines, layout, begin=begin, gap=gap)
            return True
        while begin > previous_end and not has_blank([lines[begin - 1]]):
            begin -= 1  # a definition, which the next line may still change
        if begin == 0:
            return False
        self._drop(begin, lines, definitions, previous_end=previous_end)
        return False

    def _drop(self, count: int, lines: Sequence[str], definitions: Sequence[Definition], *, previous_end: int) -> bool:
        """Removes lines that are final."""
        self._learn(definitions, before=count)
        self._gap |= has_blank(lines[previous_end:count])
        self._remove(count)
        return count > 0

    def _remove(self, lines: int) -> None:
        self._text = self._text[_line_end(self._text, lines, len(self._text)) :]

    def _learn(self, definitions: Sequence[Definition], *, before: int) -> None:
        for definition in definitions:
            if definition.line < before:
                self.parser.learn(definition)

    def _emit_block(
        self,
        run: Run,
        lines: Sequence[str],
        layout: BlockLayout,
        *,
        definitions: Sequence[Definition],
        gap: bool,
    ) -> None:
        self.parser.fill(run, definitions)
        self._division = None
        self._emit(layout.block(run, lines), gap=gap)

    def _cut_paragraph(self, run: Run, text: str, lines: Sequence[str], layout: BlockLayout, *, gap: bool) -> bool:
        """Makes the beginning of a very long paragraph final; returns whether the block is one."""
        if run[0].type not in ("paragraph_open", "heading_open") or run[0].markup.startswith("#"):
            return False
        assert run[0].map is not None
        begin = _line_end(text, run[0].map[0], len(text))
        end = _line_end(text, run[0].map[1], len(text))
        cut = _paragraph_end(text[begin:end])
        if cut is None:
            return False
        head = text[begin : begin + cut] + "\n"
        runs, _ = self.parser.outline(head)
        for each in runs:
            self._emit_block(each, head.split("\n"), layout, definitions=(), gap=gap)
            gap = False
        self._text = self._text[begin + cut + self._text[begin + cut].isspace() :]
        self._seen = 0
        return True

    def _cut_long(self, run: Run, lines: Sequence[str], layout: BlockLayout, *, gap: bool) -> bool:
        """Makes the beginning of a long block final; returns whether the block is one.

        It reads so few lines at once that none of the parts is itself too long.
        """
        begin = begin_of(run)
        opened = begin + (self._division.opening().count("\n") if self._division else 0)
        whole = end_of(run, lines)
        if run[0].type not in _DIVIDED or whole - opened <= MOST_LINES:
            return False
        for end in range(opened + MOST_LINES + 1, whole + 1):
            (part, *_), _ = self._outline("\n".join(lines[begin:end]) + "\n")
            division = divide(part, lines[begin:end]) or divide_leaf(part, lines[begin:end])
            if division is not None:
                self._cut(replace(division, end=begin + division.end), lines, layout, begin=begin, gap=gap)
                return True
        return False

    def _cut_line(self, run: Run, lines: Sequence[str], layout: BlockLayout, *, gap: bool) -> bool:
        """Makes the beginning of a very long line within a container final; returns whether the block has one."""
        begin = begin_of(run)
        if run[0].type not in _CONTAINERS:
            return False
        for place in range(begin, end_of(run, lines)):
            if (at := _paragraph_end(lines[place])) is None:
                continue
            until = lines[begin : place + 1]
            (part, *_), _ = self._outline("\n".join(until) + "\n")
            if (division := divide(part, until)) is not None:
                self._cut(replace(division, end=begin + division.end), lines, layout, begin=begin, gap=gap)
                return True
            if (division := divide_paragraph(part, until)) is None:
                continue
            before = len("".join(f"{line}\n" for line in lines[:place]))
            rest = self._text[before + at :]
            self._text = self._text[: before + at] + "\n" + division.prefix() + rest[rest[0].isspace() :]
            divided = [*lines[:place], lines[place][:at]]
            self._cut(replace(division, end=place + 1), divided, layout, begin=begin, gap=gap)
            return True
        return False

    def _cut(self, division: Division, lines: Sequence[str], layout: BlockLayout, *, begin: int, gap: bool) -> None:
        """Makes the beginning of a block final."""
        head = lines[begin : division.end]
        runs, definitions = self._outline("\n".join(head) + "\n")
        if runs[0][0].type == "table_open":
            shape = self._division.shape if self._division else None
            division = replace(division, shape=shape or layout.shape(self.parser.fill(runs[0])))
        for run in runs:
            self._emit_block(run, head, layout, definitions=definitions, gap=gap)
            gap = False
        self._learn(definitions, before=len(head))
        self._remove(division.end)
        self._text = division.opening() + self._text
        self._division = division

    def _cut_partial(self, layout: BlockLayout) -> bool:
        """Does the same with a long line that is not complete."""
        if len(self._text) - self._text.rfind("\n") <= LONGEST_PARAGRAPH:
            return False
        runs, _ = self._outline(self._text)
        if len(runs) != 1:
            return False
        lines = self._text.split("\n")
        gap = has_blank(lines[: begin_of(runs[0])])
        return self._cut_paragraph(runs[0], self._text, lines, layout, gap=gap) or self._cut_line(
            runs[0], lines, layout, gap=gap
        )


class _OpenCode:
    """A block of code whose closing fence has not come."""

    def __init__(self, opening: str, fence: str, colors: CodeColors) -> None:
        self._indent = len(opening) - len(opening.lstrip(" "))
        self._closing = re.compile(rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*")
        self._maybe_closing = re.compile(rf" {{0,3}}{re.escape(fence[0])}*[ \t]*")
        self._colors = colors

    def ends(self, line: str) -> bool:
        """Returns whether a line is the closing fence."""
        return self._closing.fullmatch(line) is not None

    def complete(self, line: str) -> str:
        """Returns a line of the code with its colours."""
        return self._colors.complete(safe(self._dedented(line)))

    def partial(self, line: str) -> str | None:
        """Returns the beginning of a line with its colours; None: it may be the closing fence."""
        return None if self._maybe_closing.fullmatch(line) else self._colors.partial(safe(self._dedented(line)))

    def _dedented(self, line: str) -> str:
        spaces = len(line) - len(line.lstrip(" "))
        return line[min(spaces, self._indent) :]


def _line_end(text: str, lines: int, default: int) -> int:
    """Returns the place after so many lines, or ``default`` if there are fewer."""
    place = 0
    for _ in range(lines):
        place = text.find("\n", place) + 1
        if place == 0 or place > default:
            return default
    return place


def _paragraph_end(text: str) -> int | None:
    """Returns the place of the space or line feed at which a paragraph is cut; None: it is short enough."""
    places = []
    by_lines = _line_end(text, MOST_LINES, len(text)) - 1
    if by_lines < len(text) - 1:
        places.append(by_lines)
    if len(text) > LONGEST_PARAGRAPH:
        space = re.compile(r"\s").search(text, LONGEST_PARAGRAPH, LONGEST_PARAGRAPH + LONGEST_WORD)
        if space and space.end() < len(text):
            places.append(space.start())
        elif not space and len(text) > LONGEST_PARAGRAPH + LONGEST_WORD:
            places.append(LONGEST_PARAGRAPH + LONGEST_WORD)
    return min(places, default=None)
