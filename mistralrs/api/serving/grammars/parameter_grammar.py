"""The rules of a call's arguments that are written one by one, as Qwen3-Coder does, and not as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mistralrs.errors import RequestError
from mistralrs.grammar.choice_grammar import literal
from mistralrs.grammar.json_grammar import inline_schema
from mistralrs.grammar.translation import reason_in
from mistralrs.text.response.call_format import VALUE
from mistralrs.text.response.call_notation import KEY

if TYPE_CHECKING:
    from mistralrs.api.serving.grammars.tool_choice import Tool

_NOTES = {"title", "description", "default", "examples", "$schema", "$comment"}
_OBJECT = {"type", "properties", "required", "additionalProperties", *_NOTES}
_JSON_TYPES = ("number", "integer", "boolean", "array", "object", "null")


def shared_rules(parameter: str) -> list[str]:
    """Returns the rules that arguments of all tools use. ``parameter``: the form of one argument."""
    before, middle, after = _split(parameter)
    return [
        f"any_text[lazy]: /(?s:.*)/ {literal(after)}",
        f"any_parameter: {literal(before)} KEY {literal(middle)} any_text",
        r"KEY: /[^>\n]+/",
    ]


def argument_rules(tool: Tool, place: int, parameter: str, *, held: bool) -> Iterator[str]:
    """Yields the rules of ``arguments_PLACE``; ``held``: they match the tool's schema, otherwise they are any.

    Properties come in the schema's order, and no others. Raises RequestError with the path of what cannot be held.
    """
    name = f"arguments_{place}"
    if not held:
        yield f"{name}: any_parameter*"
        return
    if others := sorted(tool.schema.keys() - _OBJECT):
        raise _unheld(f"{tool.path}/{others[0]}", "it cannot be held in this model's form of calls")
    properties: Mapping[str, Any] = tool.schema.get("properties", {})
    required = tool.schema.get("required", [])
    if missing := [key for key in required if key not in properties]:
        raise _unheld(f"{tool.path}/required", f"{missing[0]} has no schema")
    before, middle, after = _split(parameter)
    symbols = []
    for number, (key, schema) in enumerate(properties.items()):
        path, symbol = f"{tool.path}/properties/{key}", f"parameter_{place}_{number}"
        if ">" in key or "\n" in key:
            raise _unheld(path, "its name cannot be written in this model's form of calls")
        yield f"{symbol}: {literal(before + key + middle)} {symbol}_value"
        yield f"{symbol}_value: {_value(schema, after, path)}"
        symbols.append(symbol if key in required else f"{symbol}?")
    written = " ".join(symbols) or literal("")
    yield f"{name}: {written}"


def _value(schema: Any, after: str, path: str) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind == "string" and not schema.keys() - {"type", *_NOTES}:
        return "any_text"
    is_plain = isinstance(schema, dict) and not schema.keys() - {"type", "enum", *_NOTES}
    choices = schema["enum"] if is_plain and isinstance(schema.get("enum"), list) else []
    if kind in (None, "string") and choices and all(isinstance(choice, str) for choice in choices):
        if any(after in choice for choice in choices):
            raise _unheld(f"{path}/enum", "a text of it ends the argument")
        return f"({' | '.join(literal(choice + after) for choice in choices)})"
    is_json = kind in _JSON_TYPES or (kind is None and choices and not any(isinstance(each, str) for each in choices))
    if not is_json:
        raise _unheld(path, "only texts without limits, choices of texts, and other types can be held in this form")
    try:
        inline_schema(schema)
    except RequestError as error:
        raise _unheld(path, reason_in(error)) from None
    return f"%json {json.dumps(schema)} {literal(after)}"


def _split(parameter: str) -> tuple[str, str, str]:
    before, rest = parameter.split(KEY)
    middle, after = rest.split(VALUE)
    return before, middle, after


def _unheld(path: str, reason: str) -> RequestError:
    field = path.partition("/")[0]
    return RequestError(f"{path}: {reason}", hint="leave strict out", code="invalid_schema", param=field)
