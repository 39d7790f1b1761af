"""The value of a region's text: what its content type reads there, in the shape of its ``transform``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mistralrs.parsing import parse_nested
from mistralrs.text.response.delimiters import Delimiter, MatchClock, compiled
from mistralrs.text.response.python_calls import python_calls

TYPES: Mapping[str, frozenset[str]] = {
    "text": frozenset({"strip"}),
    "int": frozenset({"strip"}),
    "float": frozenset({"strip"}),
    "bool": frozenset({"strip"}),
    "json": frozenset({"strip", "unquoted_keys", "string_delims", "allow_non_json"}),
    "xml-inline": frozenset({"tag_pattern", "value_parser", "merge_duplicates"}),
    "kv-lines": frozenset({"strip", "line_sep", "kv_sep", "value_parser"}),
    "python-call-list": frozenset(),
}
"""The names of each content type's arguments."""
PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")
_OPEN, _CLOSE = "\x01", "\x02"  # stand for strings in own delimiters; no model writes them
_STAND_IN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_BARE_KEY = re.compile(r'"(?:\\.|[^"\\])*"|(?<=[{,])(\s*)(\w+)(\s*):')


def read_content(text: str, kind: str, arguments: Mapping[str, Any], *, clock: MatchClock) -> Any:
    """The value of the text. Raises ValueError, or RecursionError, if it is none of this content type."""
    if kind == "json":
        return _json(text, arguments)
    if kind == "xml-inline":
        return _tags(text, arguments, clock)
    if kind == "kv-lines":
        return _lines(text, arguments, clock)
    if kind == "python-call-list":
        return python_calls(text)
    text = _stripped(text, arguments)
    if kind == "bool":
        return text.lower() in ("true", "1")
    return {"int": int, "float": float}.get(kind, str)(text)


def _stripped(text: str, arguments: Mapping[str, Any]) -> str:
    return text.strip() if arguments.get("strip", True) else text


def _json(text: str, arguments: Mapping[str, Any]) -> Any:
    strings: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        strings.append(match[1])
        return f"{_OPEN}{len(strings) - 1}{_CLOSE}"

    delimiters = arguments.get("string_delims", ())
    if delimiters and (_OPEN in text or _CLOSE in text):
        raise ValueError("the text has control characters")
    changed = text
    for opening, closing in delimiters:
        changed = re.sub(f"{re.escape(opening)}(.*?){re.escape(closing)}", stand_in, changed, flags=re.DOTALL)
    if arguments.get("unquoted_keys", False):
        changed = _BARE_KEY.sub(lambda key: key[0] if key[2] is None else f'{key[1]}"{key[2]}"{key[3]}:', changed)
    if delimiters:
        changed = _STAND_IN.sub(lambda place: json.dumps(strings[int(place[1])]), changed)
    try:
        return parse_nested(json.loads, changed)
    except ValueError:
        if arguments.get("allow_non_json"):
            return _stripped(text, arguments)
        raise


def _tags(text: str, arguments: Mapping[str, Any], clock: MatchClock) -> dict[str, Any]:
    merges = arguments.get("merge_duplicates", False)
    found: dict[str, Any] = {}
    several: set[str] = set()
    pattern = arguments["tag_pattern"]
    for groups in _matches(pattern, text, clock):
        key = groups["key"]
        if key is None:
            raise ValueError("a tag has no key")
        value = _inner(groups.get("value", ""), arguments.get("value_parser"), clock)
        if key not in found or not merges:
            found[key] = value
            continue
        if key not in several:
            found[key] = [found[key]]
            several.add(key)
        found[key].append(value)
    return found


def _matches(pattern: str, text: str, clock: MatchClock) -> list[dict[str, Any]]:
    with clock.timing(Delimiter(pattern=pattern)):
        return [match.groupdict() for match in compiled(pattern).finditer(text, timeout=clock.limit())]


def _lines(text: str, arguments: Mapping[str, Any], clock: MatchClock) -> dict[str, Any]:
    found = {}
    separator = arguments.get("kv_sep", ":")
    for line in text.split(arguments.get("line_sep", "\n")):
        key, present, value = _stripped(line, arguments).partition(separator)
        if present:
            inner = arguments.get("value_parser")
            found[_stripped(key, arguments)] = _inner(_stripped(value, arguments), inner, clock)
    return found


def _inner(text: Any, parser: Mapping[str, Any] | None, clock: MatchClock) -> Any:
    if parser is None:
        return text
    if not isinstance(text, str):
        raise ValueError("a tag has no value")
    return read_content(text, parser.get("name", "text"), parser.get("args", {}), clock=clock)


def transformed(shape: Any, scope: Mapping[str, Any]) -> Any:
    """The shape with each placeholder ``{name}`` or ``{name.key}`` replaced by its value in the scope. Raises
    ValueError if there is none."""
    if isinstance(shape, dict):
        return {key: transformed(value, scope) for key, value in shape.items()}
    if isinstance(shape, list):
        return [transformed(value, scope) for value in shape]
    place = PLACEHOLDER.fullmatch(shape) if isinstance(shape, str) else None
    if place is None:
        return shape
    value: Any = scope
    for key in place[1].split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"there is no {place[1]}")
        value = value[key]
    return value
