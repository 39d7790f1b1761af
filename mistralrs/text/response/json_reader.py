"""Reads one JSON value that arrives in parts, and says where the values in it begin and end."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum, auto

MAX_DEPTH = 200
"""Objects and arrays inside each other, at most."""
_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"[-+.0-9a-zA-Z]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = ("true", "false", "null")
_HEX = frozenset("0123456789abcdefABCDEF")


class What(Enum):
    """The events of a value."""

    BEGIN = auto()
    END = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True)
class JsonEvent:
    """A value begins before the character at ``place``, or ends before it, or the text is no JSON from there on."""

    what: What
    place: int
    path: tuple[str | None, ...] = ()
    """Keys from the root to the value; None for a place in an array."""
    first: str = ""
    """First character of the value that begins: ``{``, ``[``, ``"``, or that of a number or word."""


class _State(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    NEXT = auto()
    STRING = auto()
    SCALAR = auto()
    DONE = auto()
    FAILED = auto()


class JsonReader:
    """Reads by RFC 8259: no comments, no ``NaN``, no control characters in strings."""

    def __init__(self) -> None:
        self._state = _State.VALUE
        self._path: list[str | None] = []
        self._in_object: list[bool] = []
        self._is_key = False
        self._key = ""
        self._scalar = ""
        self._escape = 0
        """Characters of an escape that are missing; -1: the one that says which escape it is."""
        self._skip = 0
        """Characters at the place of the last event that have been read."""

    @property
    def done(self) -> bool:
        """Whether the value is complete."""
        return self._state is _State.DONE

    def read(self, text: str, place: int) -> JsonEvent | None:
        """The next event in ``text`` from ``place`` on; None if there is none before the text's end.

        The next call goes on at the event's place, or at the start of the text that follows.
        """
        place, self._skip = place + self._skip, 0
        while place < len(text):
            if self._state is _State.STRING:
                place, event = self._string(text, place)
            elif self._state is _State.SCALAR:
                place, event = self._rest_of_scalar(text, place)
            else:
                place = _after(_SPACE, text, place)
                if place == len(text):
                    break
                place, event = self._structure(text[place], place)
            if event is not None:
                return event
        return None

    def finish(self) -> bool:
        """Ends the text; returns whether the value is complete, which a number at the end only is now."""
        if self._state is _State.SCALAR and not self._path and _is_scalar(self._scalar):
            self._state = _State.DONE
        return self.done

    def _structure(self, character: str, place: int) -> tuple[int, JsonEvent | None]:
        state = self._state
        if state is _State.VALUE or (state is _State.VALUE_OR_END and character != "]"):
            return self._begin(character, place)
        if state is _State.COLON and character == ":":
            self._state = _State.VALUE
        elif state in (_State.KEY, _State.KEY_OR_END) and character == '"':
            self._state, self._is_key, self._key = _State.STRING, True, ""
        elif state is _State.NEXT and character == ",":
            self._state = _State.KEY if self._in_object[-1] else _State.VALUE
            if not self._in_object[-1]:
                self._path[-1] = None
        elif self._closes(character):
            self._path.pop()
            self._in_object.pop()
            return self._end(place + 1)
        else:
            return self._fail(place)
        return place + 1, None

    def _closes(self, character: str) -> bool:
        if self._state in (_State.NEXT, _State.KEY_OR_END) and self._in_object[-1]:
            return character == "}"
        return self._state in (_State.NEXT, _State.VALUE_OR_END) and character == "]"

    def _begin(self, character: str, place: int) -> tuple[int, JsonEvent | None]:
        event = JsonEvent(What.BEGIN, place, tuple(self._path), character)
        if character in "{[":
            if len(self._path) >= MAX_DEPTH:
                return self._fail(place)
            self._in_object.append(character == "{")
            self._path.append(None)
            self._state = _State.KEY_OR_END if character == "{" else _State.VALUE_OR_END
        elif character == '"':
            self._state, self._is_key = _State.STRING, False
        elif character.isascii() and (character.isdigit() or character in "-tfn"):
            self._state, self._scalar = _State.SCALAR, character
        else:
            return self._fail(place)
        self._skip = 1
        return place, event

    def _string(self, text: str, place: int) -> tuple[int, JsonEvent | None]:
        begin = place
        while place < len(text):
            character = text[place]
            if self._escape:
                if not self._escaped(character):
                    return self._fail(place)
                place += 1
                continue
            place = _after(_PLAIN, text, place)
            if place == len(text):
                break
            character = text[place]
            if character == "\\":
                self._escape = -1
            elif character != '"':
                return self._fail(place)
            place += 1
            if character == '"':
                return self._end_string(text[begin : place - 1], place)
        if self._is_key:
            self._key += text[begin:place]
        return place, None

    def _escaped(self, character: str) -> bool:
        if self._escape > 0:
            self._escape -= 1
            return character in _HEX
        self._escape = 4 if character == "u" else 0
        return character in '"\\/bfnrtu'

    def _end_string(self, rest: str, place: int) -> tuple[int, JsonEvent | None]:
        if not self._is_key:
            return self._end(place)
        self._path[-1] = decoded_string(f'"{self._key}{rest}"')
        self._state = _State.COLON
        return place, None

    def _rest_of_scalar(self, text: str, place: int) -> tuple[int, JsonEvent | None]:
        end = _after(_SCALAR, text, place)
        self._scalar += text[place:end]
        if end == len(text):
            return end, None
        return self._end(end) if _is_scalar(self._scalar) else self._fail(end)

    def _end(self, place: int) -> tuple[int, JsonEvent | None]:
        self._state = _State.NEXT if self._path else _State.DONE
        return place, JsonEvent(What.END, place, tuple(self._path))

    def _fail(self, place: int) -> tuple[int, JsonEvent | None]:
        self._state = _State.FAILED
        return place, JsonEvent(What.ERROR, place)


def decoded_string(raw: str) -> str | None:
    """The text of a JSON string with its quotes; None if it is none, or no Unicode text."""
    try:
        text = json.loads(raw)
        text.encode()
    except (ValueError, AttributeError):
        return None
    return str(text)


def _after(pattern: re.Pattern[str], text: str, place: int) -> int:
    """The end of a match at ``place`` of a pattern that always matches."""
    match = pattern.match(text, place)
    return match.end() if match else place


def _is_scalar(text: str) -> bool:
    return text in _WORDS or _NUMBER.fullmatch(text) is not None
