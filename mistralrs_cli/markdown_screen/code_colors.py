"""Highlights code a line at a time: a line that is shown never changes by what follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mistralrs_cli.markdown_screen.inline_text import drawn
from mistralrs_cli.markdown_screen.word_wrap import Piece

if TYPE_CHECKING:
    from pygments.lexer import Lexer
    from rich.syntax import ANSISyntaxTheme

LONGEST_LINE = 2000
"""Characters of a line that is highlighted."""
_LEAST_CONTEXT, _MOST_CONTEXT = 8, 64
"""Lines that are read again with a line, so that it is known to be in a comment or a long text."""


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
        begins_anew = line[:1].strip() != "" and line[0] not in ")]}" and not self._is_within
        if len(self._context) >= (_LEAST_CONTEXT if begins_anew else _MOST_CONTEXT):
            self._context = []
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


def _lexer(language: str) -> Lexer | None:
    if not language:
        return None
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
