"""Arguments of a call in the types that the called tool declares, where a format or a model writes them as texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from mistralrs.parsing import parse_nested
from mistralrs.text.response.json_reader import JsonReader, What

Types = Mapping[str, tuple[str, ...]]
"""Names of JSON types by argument."""


def declared_types(tools: Iterable[Mapping[str, object]]) -> dict[str, Types]:
    """The types of each tool's arguments, by the tool's name; without those that only take texts."""
    found: dict[str, Types] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(name := function.get("name"), str):
            continue
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
        types = {key: _types(schema) for key, schema in _items(properties)}
        found[name] = {key: each for key, each in types.items() if set(each) - {"string"}}
    return found


def _items(properties: object) -> Iterable[tuple[str, object]]:
    return properties.items() if isinstance(properties, Mapping) else ()


def _types(schema: object) -> tuple[str, ...]:
    if not isinstance(schema, Mapping):
        return ()
    declared = schema.get("type")
    found = [each for each in (declared if isinstance(declared, list) else [declared]) if isinstance(each, str)]
    for union in ("anyOf", "oneOf"):
        choices = schema.get(union)
        for choice in choices if isinstance(choices, list) else ():
            found.extend(_types(choice))
    if schema.get("nullable") and "null" not in found:
        found.append("null")
    return tuple(found)


def in_types(argument: object, types: tuple[str, ...]) -> object:
    """The argument as a value of the first type that its text is one of; itself if it is no text, or fits none.

    Texts in an array are taken alike, unless the types have arrays.
    """
    if isinstance(argument, str):
        return _value_of(argument, types)
    if isinstance(argument, list) and "array" not in types:
        return [_value_of(each, types) if isinstance(each, str) else each for each in argument]
    return argument


def _value_of(text: str, types: tuple[str, ...]) -> object:
    for name in types:
        try:
            if name in ("integer", "number"):
                number = _number(text, whole=name == "integer")
                if number is not None:
                    return number
            elif name == "boolean" and (word := text.strip().lower()) in ("true", "1", "false", "0"):
                return word in ("true", "1")
            elif name == "null" and text.strip() in ("null", "None"):
                return None
            elif name in ("object", "array"):
                value = parse_nested(json.loads, text)
                if isinstance(value, dict if name == "object" else list):
                    return value
        except ValueError:
            continue
    return text


def _number(text: str, *, whole: bool) -> int | float | None:
    """The number; an integer where it can be, but for one written with a point that need not be. Raises ValueError if
    the text is none."""
    if whole:
        try:
            return int(text)
        except ValueError:
            pass
    number = float(text)
    if not math.isfinite(number):
        return None
    if number.is_integer() and (whole or "." not in text):
        return int(number)
    return None if whole else number


def json_text(value: object) -> str:
    """The value as JSON. Raises ValueError for numbers that JSON does not have, RecursionError for deep values."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone half of a surrogate pair
        return json.dumps(value, allow_nan=False)
    return text


class ArgumentWriter:
    """Passes on the JSON text of a call's arguments as it comes, but values that ``in_types`` changes in new words.

    Texts and arrays of arguments that could change are passed on when they are complete.
    """

    def __init__(self, types: Types) -> None:
        self._types = types
        self._reader = JsonReader()
        self._held: list[str] | None = None

    def write(self, text: str) -> str:
        """Further JSON text, known to be such; returns the text to pass on."""
        if not self._types:
            return text
        written: list[str] = []
        place = 0
        while True:
            event = self._reader.read(text, place)
            end = len(text) if event is None else event.place
            (written if self._held is None else self._held).append(text[place:end])
            if event is None:
                return "".join(written)
            place = end
            if event.what is What.BEGIN and self._may_change(event.path, event.first):
                self._held = []
            elif event.what is What.END and self._held is not None and len(event.path) == 1:
                written.append(self._changed("".join(self._held), event.path))
                self._held = None

    def finish(self) -> str:
        """The text that is held back because its value is not complete."""
        return "".join(self._held or ())

    def _may_change(self, path: Sequence[str | None], first: str) -> bool:
        types = self._types.get(path[0] or "", ()) if len(path) == 1 else ()
        return bool(types) and (first == '"' or (first == "[" and "array" not in types))

    def _changed(self, raw: str, path: Sequence[str | None]) -> str:
        value = json.loads(raw)
        typed = in_types(value, self._types[path[0] or ""])
        if typed == value and type(typed) is type(value):
            return raw
        return json_text(typed)
