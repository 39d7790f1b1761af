"""Checks of the single values that a JSON schema's keywords have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mistralrs.errors import RequestError
from mistralrs.grammar.json_keywords import ANNOTATION_FORMATS, FORMATS, TYPES
from mistralrs.grammar.json_pattern import whole_text_pattern
from mistralrs.grammar.translation import grammar_error, reason_in

Schema = dict[str, Any] | bool

MAX_EXACT = 1 << 53
"""Largest whole number that the library compares exactly."""
MIN_MAGNITUDE = 1e-9
MAX_ITEMS = 2_000
MAX_LENGTH = 1_000_000
MAX_MEMBERS = 5_000
_MAX_COUNTS = {"minItems": MAX_ITEMS, "maxItems": MAX_ITEMS, "minLength": MAX_LENGTH, "maxLength": MAX_LENGTH}


def schema_error(pointer: str, message: str, *, hint: str | None = None) -> RequestError:
    """The error of a place in a schema, named by its JSON pointer."""
    return grammar_error(f"{pointer or 'the schema'}: {message}", hint=hint, pointer=pointer)


def as_schema(value: object, pointer: str) -> Schema:
    """The value, if it is a schema. Raises RequestError if it is not."""
    if not isinstance(value, dict | bool):
        raise schema_error(pointer, "it is neither an object nor a boolean")
    return value


def checked_types(value: object, pointer: str) -> list[str]:
    """The names of ``type`` as a list."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise schema_error(pointer, f"{shown(value)} is not a type", hint=f"the types are {', '.join(TYPES)}")
    return list(dict.fromkeys(names))


def checked_count(keyword: str, value: object, pointer: str) -> int:
    """The value of a keyword that counts, such as ``minItems``."""
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole) or value < 0:  # type: ignore[operator]
        raise schema_error(pointer, f"{shown(value)} is not a whole number of 0 or more")
    count = int(value)  # type: ignore[call-overload]
    most = _MAX_COUNTS.get(keyword, MAX_EXACT)
    if count > most:
        raise schema_error(pointer, f"{count} is more than {most}, which is as many as can be counted")
    return int(count)


def checked_number(value: object, pointer: str) -> int | float:
    """A bound or a constant: a number that the library holds exactly."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise schema_error(pointer, f"{shown(value)} is not a number")
    if not math.isfinite(value) or abs(value) > MAX_EXACT or (value and abs(value) < MIN_MAGNITUDE):
        raise schema_error(pointer, f"{value} is too large or too small to be held exactly")
    return int(value) if float(value).is_integer() else value


def checked_constant(value: object, pointer: str, *, depth: int = 0) -> object:
    """A value of ``const`` or ``enum``, in which numbers are held exactly."""
    if depth > 32:
        raise schema_error(pointer, "the value is nested too deeply")
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return checked_number(value, pointer)
    if isinstance(value, str):
        return checked_text(value, pointer)
    if isinstance(value, list):
        return [checked_constant(each, pointer, depth=depth + 1) for each in value]
    if isinstance(value, dict):
        return {
            checked_text(name, pointer): checked_constant(each, pointer, depth=depth + 1)
            for name, each in value.items()
        }
    raise schema_error(pointer, f"{shown(value)} is not a JSON value")


def checked_text(value: str, pointer: str) -> str:
    """A text that can be generated: characters with one spelling in JSON."""
    for character in value:
        if "\ud800" <= character <= "\udfff":
            raise schema_error(pointer, f"{value!a} has half of a surrogate pair")
        if character < " " and character not in "\n\r\t\b\f":
            raise schema_error(pointer, f"{value!a} has a control character, which is never generated")
        if character == "\x7f":
            raise schema_error(pointer, f"{value!a} has a control character, which is never generated")
    return value


def checked_pattern(value: object, pointer: str) -> str:
    """A pattern in the library's syntax, for the whole text."""
    if not isinstance(value, str):
        raise schema_error(pointer, f"{shown(value)} is not a text")
    try:
        return f"^(?:{whole_text_pattern(value)})$"
    except RequestError as error:
        raise schema_error(pointer, reason_in(error)) from None


def checked_format(value: object, pointer: str) -> str | None:
    """The format, if generated text has to obey it; None if it says how a value is stored."""
    if value in ANNOTATION_FORMATS:
        return None
    if value not in FORMATS:
        hint = f"those that are obeyed: {', '.join(sorted(FORMATS))}; or leave it out"
        raise schema_error(pointer, f"the format {shown(value)} is not supported", hint=hint)
    return str(value)


def checked_names(value: object, pointer: str) -> list[str]:
    """The names of ``required``."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise schema_error(pointer, "it is not a list of names")
    return [checked_text(name, pointer) for name in dict.fromkeys(value)]


def checked_mapping(value: object, pointer: str) -> Mapping[str, Any]:
    """The value, if it is an object with few enough members."""
    if not isinstance(value, dict):
        raise schema_error(pointer, "it is not an object")
    if len(value) > MAX_MEMBERS:
        raise schema_error(pointer, f"{len(value)} members are more than {MAX_MEMBERS}")
    return value


def shown(value: object) -> str:
    """A value in a message, shortened."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
