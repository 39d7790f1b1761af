"""Highlights code a line at a time: a line that is shown never changes by what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mistralrs_cli.markdown_screen.inline_text import drawn
from mistralrs_cli.markdown_screen.word_wrap import Piece

if TYPE_CHECKING:
    from pygments.lexer import Lexer
    from rich.syntax import ANSISyntaxTheme

LONGEST_LINE = 2000
"""Characters of a line that is highlighted."""
_LEAST_CONTEXT, _MOST_CONTEXT = 8, 64
"""Lines that are read again with a line: few, or many while it may be in a comment or a long text."""
_ENCLOSING = 4
"""Lines at most that are kept of those before: the ones that the line is indented under."""


class CodeColors:
    """Highlights the lines of one block of code in the named language; an unknown language is left plain."""

    def __init__(self, language: str, theme: ANSISyntaxTheme) -> None:
        self._theme = theme
        self._lexer = _lexer(language)
        self._context: list[str] = []
        self._is_within = False
        """The last line ends in a comment or a text that may go on."""

    def complete(self, line: str) -> str:
        """Returns the next line, which is complete, with its colours."""
        if self._is_plain(line):
            return line
        context = self._before(line)
        pieces, self._is_within = self._colored(line, context)
        self._context = [*context, line]
        return drawn(pieces)

    def partial(self, line: str) -> str:
        """Returns the beginning of the next line with its colours, which are those of a complete line."""
        if self._is_plain(line):
            return line
        pieces, _ = self._colored(line, self._before(line))
        return drawn(pieces)

    def _is_plain(self, line: str) -> bool:
        return self._lexer is None or len(line) > LONGEST_LINE

    def _before(self, line: str) -> list[str]:
        """Returns the lines that are read again with ``line``."""
        if len(self._context) < (_MOST_CONTEXT if self._is_within else _LEAST_CONTEXT + _ENCLOSING):
            return list(self._context)
        return [] if self._is_within else _enclosing(self._context, line)

    def _colored(self, line: str, context: Sequence[str]) -> tuple[list[Piece], bool]:
        """Returns a line with its colours, and whether it ends in a comment or a text that may go on."""
        from pygments.token import Comment, String

        assert self._lexer is not None
        begin = sum(len(each) + 1 for each in context)
        text = "\n".join([*context, line]) + "\n"
        pieces = []
        is_within = False
        at = 0
        for kind, value in self._lexer.get_tokens(text):
            shown = value[max(0, begin - at) :].rstrip("\n") if at + len(value) > begin else ""
            at += len(value)
            if shown:
                pieces.append(Piece(shown, self._theme.get_style_for_token(kind)))
            if value.strip():
                is_within = kind in Comment.Multiline or kind in String
        return pieces, is_within


class GrowingCode:
    """The colours of the code that was drawn last: it is drawn again as it grows."""

    def __init__(self) -> None:
        self._key: tuple[str, ANSISyntaxTheme] | None = None
        self._lines: list[str] = []
        self._colored: list[str] = []

    def colored(self, lines: Sequence[str], language: str, *, theme: ANSISyntaxTheme) -> list[str]:
        """Returns the lines of one block of code with their colours."""
        *complete, last = lines
        if self._key != (language, theme) or self._lines != complete[: len(self._lines)]:
            self._key, self._colors = (language, theme), CodeColors(language, theme)
            self._lines, self._colored = [], []
        for line in complete[len(self._lines) :]:
            self._lines.append(line)
            self._colored.append(self._colors.complete(line))
        return [*self._colored, self._colors.partial(last)]


def _enclosing(lines: Sequence[str], line: str) -> list[str]:
    """Returns the lines that ``line`` is indented under, the outermost first."""
    enclosing: list[str] = []
    indent = _indent(line)
    for each in reversed(lines):
        if each.strip() and _indent(each) < indent and len(enclosing) < _ENCLOSING:
            enclosing.insert(0, each)
            indent = _indent(each)
    return enclosing


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _lexer(language: str) -> Lexer | None:
    if not language:
        return None
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
