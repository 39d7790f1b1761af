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
        if self._lexer is None or len(line) > LONGEST_LINE:
            return line
        if len(self._context) >= (_MOST_CONTEXT if self._is_within else _LEAST_CONTEXT + _ENCLOSING):
            self._context = [] if self._is_within else _enclosing(self._context, line)
        pieces = self._colored(line)
        self._context.append(line)
        return drawn(pieces)

    def partial(self, line: str) -> str:
        """Returns the beginning of the next line with its colours."""
        return line if self._lexer is None or len(line) > LONGEST_LINE else drawn(self._colored(line))

    def _colored(self, line: str) -> list[Piece]:
        from pygments.token import Comment, String

        assert self._lexer is not None
        begin = sum(len(each) + 1 for each in self._context)
        text = "\n".join([*self._context, line]) + "\n"
        pieces = []
        self._is_within = False
        at = 0
        for kind, value in self._lexer.get_tokens(text):
            shown = value[max(0, begin - at) :].rstrip("\n") if at + len(value) > begin else ""
            at += len(value)
            if shown:
                pieces.append(Piece(shown, self._theme.get_style_for_token(kind)))
            if value.strip():
                self._is_within = kind in Comment.Multiline or kind in String
        return pieces


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
