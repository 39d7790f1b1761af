"""Reads lists of calls in Python's notation, such as ``[get_weather(city="Paris")]``.

The grammar is that of the content type `python-call-list` of transformers' response templates: keyword arguments with
literal values, no trailing commas, no expressions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

_T = TypeVar("_T")
_MAX_DEPTH = 100
_MAX_INTEGER = 2**53 - 1
_SPACE = re.compile(r"[ \t\n\r]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[-.][A-Za-z0-9_]+)*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?P<rest>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_STRING = re.compile(r"'(?:[^'\\\n\r]|\\.)*'|\"(?:[^\"\\\n\r]|\\.)*\"", re.S)
_ESCAPE = re.compile(r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))", re.S)
_ESCAPED = {**dict(zip("bfnrt", "\b\f\n\r\t", strict=True)), **{each: each for each in "\\'\"/"}}
_WORDS: dict[str, object] = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}


def python_calls(text: str) -> list[object]:
    """The calls, each as ``{"name": ..., "arguments": {...}}``. Raises ValueError if the text is no such list."""
    return _Reader(text).calls()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def calls(self) -> list[object]:
        self._take("[")
        found = self._items("]", self._call)
        if self._next():
            self._fail("the end")
        return found

    def _call(self) -> object:
        name = self._name()
        self._take("(")
        return {"name": name, "arguments": self._unique(self._items(")", self._argument))}

    def _argument(self) -> tuple[str, object]:
        name = self._name()
        self._take("=")
        return name, self._value(0)

    def _value(self, depth: int) -> object:
        character = self._next()
        if character in ("'", '"'):
            return self._string()
        if character in ("[", "{"):
            if depth >= _MAX_DEPTH:
                self._fail("fewer lists inside each other")
            self._place += 1
            if character == "[":
                return self._items("]", lambda: self._value(depth + 1))
            return self._unique(self._items("}", lambda: self._pair(depth + 1)))
        if match := _NUMBER.match(self._text, self._place):
            return self._number(match)
        word = _NAME.match(self._text, self._place)
        if word is None or word[0] not in _WORDS:
            self._fail("a literal value")
        self._place = word.end()
        return _WORDS[word[0]]

    def _pair(self, depth: int) -> tuple[str, object]:
        if self._next() not in ("'", '"'):
            self._fail("a string as key")
        key = self._string()
        self._take(":")
        return key, self._value(depth)

    def _number(self, match: re.Match[str]) -> int | float:
        if match["rest"]:
            number = float(match[0])
            if math.isinf(number):
                self._fail("a smaller number")
            self._place = match.end()
            return number
        if len(match[0]) > 17 or abs(int(match[0])) > _MAX_INTEGER:
            self._fail(f"an integer up to {_MAX_INTEGER}")
        self._place = match.end()
        return int(match[0])

    def _string(self) -> str:
        match = _STRING.match(self._text, self._place)
        if match is None:
            self._fail("a string")
        text = _ESCAPE.sub(self._unescaped, match[0][1:-1])
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._fail("a string of whole characters")
        self._place = match.end()
        return text

    def _unescaped(self, escape: re.Match[str]) -> str:
        if escape[1]:
            return chr(0x10000 + ((int(escape[1], 16) - 0xD800) << 10) + int(escape[2], 16) - 0xDC00)
        if escape[3]:
            return chr(int(escape[3], 16))
        if escape[4] not in _ESCAPED:
            self._fail("a string with known escapes")
        return _ESCAPED[escape[4]]

    def _items(self, close: str, item: Callable[[], _T]) -> list[_T]:
        found: list[_T] = []
        if self._next() != close:
            found.append(item())
            while self._next() != close:
                self._take(",")
                found.append(item())
        self._place += 1
        return found

    def _unique(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._fail("each name once")
        return found

    def _name(self) -> str:
        self._next()
        match = _NAME.match(self._text, self._place)
        if match is None:
            self._fail("a name")
        self._place = match.end()
        return match[0]

    def _take(self, character: str) -> None:
        if self._next() != character:
            self._fail(repr(character))
        self._place += 1

    def _next(self) -> str:
        """The next character that is no space; empty at the end."""
        space = _SPACE.match(self._text, self._place)
        self._place = space.end() if space else self._place
        return self._text[self._place : self._place + 1]

    def _fail(self, expected: str) -> NoReturn:
        raise ValueError(f"expected {expected} at character {self._place}")
