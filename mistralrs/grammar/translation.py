"""The result of a translation into llguidance's language, and the errors of one."""

from __future__ import annotations

from dataclasses import dataclass

from mistralrs.errors import RequestError

MAX_BYTES = 1 << 20
"""Length of a grammar's text, in bytes of UTF-8, at most."""


@dataclass(frozen=True, slots=True)
class Translation:
    """A grammar in llguidance's language: a text in its Lark dialect, or its JSON."""

    grammar: str
    warnings: tuple[str, ...] = ()
    """Sentences for the caller about differences between the text and the language that is served."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a grammar's text, counted from 1."""

    line: int
    column: int

    @classmethod
    def of(cls, text: str, index: int) -> Place:
        """The place of the character at ``index``."""
        line_start = text.rfind("\n", 0, index) + 1
        return cls(text.count("\n", 0, index) + 1, index - line_start + 1)

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


_PREFIX = "the grammar cannot be used: "


def grammar_error(
    message: str, *, hint: str | None = None, place: Place | None = None, pointer: str = ""
) -> RequestError:
    """The error of a grammar that cannot be used; ``place`` is put in front of the message.

    ``pointer``: the JSON pointer of the part that is wrong, which ``param`` then names behind ``grammar``.
    """
    where = f"{place}: " if place is not None else ""
    return RequestError(f"{_PREFIX}{where}{message}", hint=hint, code="invalid_grammar", param=f"grammar{pointer}")


def reason_in(error: RequestError) -> str:
    """The message of a ``grammar_error`` as a part of another one."""
    return error.message.removeprefix(_PREFIX)
