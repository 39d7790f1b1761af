"""Finds what a regular expression has that a finite automaton cannot hold: look-around, back-references, boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mistralrs.grammar.translation import Place, grammar_error

MAX_DEPTH = 100
"""Groups within each other, at most."""
_GROUPS = {"(?=": "a look-ahead", "(?!": "a look-ahead", "(?<=": "a look-behind", "(?<!": "a look-behind"}
_REFUSED_GROUPS = _GROUPS | {
    "(?>": "an atomic group",
    "(?(": "a conditional group",
    "(?P=": "a back-reference",
    "(?P>": "a call of a group",
    "(?&": "a call of a group",
    "(?#": "a comment",
}
_ESCAPES = {
    "b": r"the word boundary \b",
    "B": r"the word boundary \B",
    "<": r"the word boundary \<",
    "k": "a back-reference",
    "g": "a back-reference",
    "G": r"the anchor \G",
    "X": r"the sequence \X",
    "K": r"the escape \K",
}
_ASCII = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\x0B\x0C\r\x20"}
_TOKEN = re.compile(r"\\.|\(\?(?:<[=!]|P[=>]|.)?|.", re.DOTALL)


def pieces(pattern: str) -> Iterator[tuple[int, str, bool]]:
    """The pattern's characters, escapes and openings of groups: index, text, whether within a character class."""
    in_class = 0
    class_start = -1
    for match in _TOKEN.finditer(pattern):
        piece, start = match[0], match.start()
        if in_class and piece.startswith("(?"):  # plain characters there
            for offset, character in enumerate(piece):
                yield start + offset, character, True
                if character == "[":
                    in_class += 1
            continue
        yield start, piece, in_class > 0
        if piece == "[" and not in_class:
            in_class, class_start = 1, start + 1
        elif piece == "[":
            in_class += 1
        elif piece == "]" and in_class and not _is_first(pattern, start, class_start):
            in_class -= 1


def refuse_unsupported(pattern: str, *, text: str | None = None, offset: int = 0) -> None:
    """Raises RequestError if the pattern has what no automaton holds, naming it and its place.

    ``text`` is the grammar's whole text if the pattern is a part of it, from ``offset`` on.
    """
    depth = 0
    for index, piece, in_class in pieces(pattern):
        if in_class:
            continue
        depth += piece.startswith("(")
        depth -= piece == ")"
        name = _REFUSED_GROUPS.get(piece)
        if name is None and len(piece) == 2 and piece[0] == "\\":
            name = "a back-reference" if piece[1] in "123456789" else _ESCAPES.get(piece[1])
        if name is None and depth > MAX_DEPTH:
            name = f"more than {MAX_DEPTH} groups within each other"
        if name is not None:
            place = Place.of(text if text is not None else pattern, offset + index)
            raise grammar_error(f"{name} is not supported in regular expressions", place=place)


def with_ascii_classes(pattern: str) -> str:
    """The pattern with ``\\d``, ``\\w`` and ``\\s`` as ASCII's digits, letters and spaces, their negations as the rest.

    A digit of another script is no answer to somebody who asks for ``\\d{4}``. ``\\p{Nd}`` still names all of them.
    """
    translated = []
    for _, piece, in_class in pieces(pattern):
        characters = _ASCII.get(piece[1].lower()) if len(piece) == 2 and piece[0] == "\\" else None
        if characters is None:
            translated.append(piece)
        elif piece[1].isupper():
            translated.append(f"[^{characters}]")
        else:
            translated.append(characters if in_class else f"[{characters}]")
    return "".join(translated)


def _is_first(pattern: str, index: int, start: int) -> bool:
    """Whether a ``]`` is the first character of a class, where it stands for itself."""
    return pattern[start:index] in ("", "^")
