"""Regular expressions of JSON schemas, in ECMAScript's syntax, as expressions of Rust that match whole texts."""

from __future__ import annotations

import re

from mistralrs.grammar.regex_syntax import pieces, refuse_unsupported
from mistralrs.grammar.translation import grammar_error

_ANY = r"(?s:.*)"
_SPACES = r"\t\n\x0B\x0C\r \xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
_MORE_SPACES = rf"{_SPACES}\x1C-\x1F\x85\x{{FEFF}}"
_WORDS = r"\p{Alphabetic}\p{M}\p{N}\p{Pc}\p{Join_Control}"
_NARROW = {
    "d": "0-9",
    "w": "0-9A-Za-z_",
    "s": _SPACES,
    "D": r"[^\p{N}]",
    "W": rf"[\x00-/:-@\[-\^`{{-\x7F[^\x00-\x7F{_WORDS}\p{{C}}]]",
    "S": f"[^{_MORE_SPACES}]",
}
"""Characters that a class has for every validator: ECMAScript's, Python's and Rust's differ beyond ASCII."""
_WIDE = {
    "d": r"\p{N}",
    "w": _WORDS,
    "s": _MORE_SPACES,
    "D": "[^0-9]",
    "W": "[^0-9A-Za-z_]",
    "S": f"[^{_SPACES}]",
}
"""Characters that a class has for some validator, for classes that exclude them."""
_CONTROLS = {"t": r"\t", "n": r"\n", "r": r"\r", "f": r"\x0C", "v": r"\x0B", "0": r"\x00"}
_ANCHORS_INSIDE = "an anchor in the middle of an expression"
_SYNTAX = frozenset(r"\.+*?()|[]{}^$#&-~/ ")
_HEX = re.compile(
    r"\\u\{([0-9A-Fa-f]{1,6})\}|\\u([Dd][89ABab][0-9A-Fa-f]{2})\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})"
)
_REPEAT = re.compile(r"\{\d+(,\d*)?\}")


def whole_text_pattern(pattern: str) -> str:
    """An expression of Rust for the whole texts in which ECMAScript's ``pattern`` matches somewhere, without anchors.

    Classes such as ``\\w`` are narrowed to the characters on which all validators agree. Raises RequestError naming
    what is not supported, such as look-around, or an anchor that is not at an end of an alternative.
    """
    refuse_unsupported(pattern)
    return _alternatives(pattern)


def depends_on_validator(pattern: str) -> bool:
    """Whether validators may disagree on the texts that a pattern matches."""
    return any(len(piece) == 2 and piece[0] == "\\" and piece[1] in _NARROW for _, piece, _ in pieces(pattern))


def _alternatives(pattern: str) -> str:
    found = []
    for alternative in _split(pattern):
        body = alternative
        starts = body.startswith("^")
        body = body.removeprefix("^")
        ends = body.endswith("$") and not _is_escaped(body, len(body) - 1)
        body = body.removesuffix("$") if ends else body
        inner = _only_group(body)
        if inner is not None and not starts and not ends and _has_anchor(inner):
            found.append(_alternatives(inner))
            continue
        found.append(f"{'' if starts else _ANY}(?:{_characters(body)}){'' if ends else _ANY}")
    return "|".join(f"(?:{each})" for each in found)


def _split(pattern: str) -> list[str]:
    """The alternatives at the top level."""
    depth, start, found = 0, 0, []
    for index, piece, in_class in pieces(pattern):
        if in_class:
            continue
        depth += piece.startswith("(")
        depth -= piece == ")"
        if piece == "|" and depth == 0:
            found.append(pattern[start:index])
            start = index + 1
    return [*found, pattern[start:]]


def _only_group(pattern: str) -> str | None:
    """The content of the one group that the pattern consists of; None if it is something else."""
    depth = 0
    opening = ""
    for index, piece, in_class in pieces(pattern):
        if in_class:
            continue
        if piece.startswith("("):
            opening = opening or piece
            depth += 1
        depth -= piece == ")"
        if depth == 0 and index < len(pattern) - 1:
            return None
    if opening == "(":
        return pattern[1:-1]
    return pattern[3:-1] if pattern.startswith("(?:") else None


def _has_anchor(pattern: str) -> bool:
    return any(piece in ("^", "$") and not in_class for _, piece, in_class in pieces(pattern))


def _is_escaped(pattern: str, index: int) -> bool:
    before = pattern[:index]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _characters(pattern: str) -> str:
    """The pattern with ECMAScript's escapes and classes in Rust's syntax. Raises RequestError for the unknown ones."""
    out, index, in_class, is_negated = [], 0, False, False
    while index < len(pattern):
        piece = pattern[index]
        if piece == "\\":
            text, index = _escape(pattern, index, in_class=in_class, is_negated=in_class and is_negated)
            out.append(text)
            continue
        if in_class:
            in_class = piece != "]"
            out.append("\\" + piece if piece in "[&~" or (piece == "-" and _is_plain_dash(pattern, index)) else piece)
        elif piece in "^$":
            raise grammar_error(f"{_ANCHORS_INSIDE} is not supported in a pattern", hint="put it at an end")
        elif piece == "[":
            text, index = _class_start(pattern, index)
            out.append(text)
            in_class, is_negated = not text.endswith(")"), text == "[^"
            continue
        elif piece == ".":
            out.append(r"[^\n\r\x{2028}\x{2029}]")
        elif piece == "{" and not _REPEAT.match(pattern, index):
            out.append(r"\{")
        elif piece == "{":
            repeat = _REPEAT.match(pattern, index)
            assert repeat is not None
            out.append(repeat[0])
            index = repeat.end()
            continue
        else:
            out.append(r"\}" if piece == "}" else r"\]" if piece == "]" else piece)
        index += 1
    return "".join(out)


def _class_start(pattern: str, index: int) -> tuple[str, int]:
    """The opening of a class; ECMAScript's empty classes match nothing and everything."""
    if pattern.startswith("[^]", index):
        return r"(?s:.)", index + 3
    if pattern.startswith("[]", index):
        return r"(?:[a&&b])", index + 2
    return ("[^", index + 2) if pattern.startswith("[^", index) else ("[", index + 1)


def _is_plain_dash(pattern: str, index: int) -> bool:
    return pattern[index - 1] == "[" or pattern[index + 1 : index + 2] == "]"


def _escape(pattern: str, index: int, *, in_class: bool, is_negated: bool) -> tuple[str, int]:
    """The escape at ``index`` in Rust's syntax, and the index behind it."""
    if match := _HEX.match(pattern, index):
        braced, high, low, four, two = match.groups()
        if high:
            code = 0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00
        else:
            code = int(braced or four or two, 16)
        if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
            raise grammar_error(f"{match[0]} is no character")
        return rf"\x{{{code:X}}}", match.end()
    letter = pattern[index + 1 : index + 2]
    if letter in ("p", "P"):
        end = pattern.find("}", index)
        if pattern[index + 2 : index + 3] == "{" and end > 0:
            return pattern[index : end + 1], end + 1
    if letter == "c" and pattern[index + 2 : index + 3].isalpha():
        return rf"\x{{{ord(pattern[index + 2]) % 32:X}}}", index + 3
    if letter in _NARROW:
        content = _WIDE[letter] if is_negated else _NARROW[letter]
        return (content if in_class else f"[{content}]"), index + 2
    if letter in _CONTROLS and letter:
        return _CONTROLS[letter], index + 2
    if letter and not letter.isalnum() and letter != "_":
        return ("\\" + letter if letter in _SYNTAX and letter not in " /" else letter), index + 2
    raise grammar_error(f"the escape \\{letter} is not supported in a pattern")
