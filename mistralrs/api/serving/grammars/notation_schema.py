"""The rules of a call's arguments that match a tool's schema, in a notation other than JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mistralrs.api.serving.grammars.notation_grammar import CANNOT
from mistralrs.errors import RequestError
from mistralrs.grammar.choice_grammar import literal
from mistralrs.grammar.json_grammar import inline_schema
from mistralrs.grammar.json_keywords import ANNOTATIONS, BOUNDS, HELD, NEUTRAL, REFUSED, TYPES, misspelt
from mistralrs.grammar.json_references import References, escaped
from mistralrs.grammar.json_values import (
    as_schema,
    checked_constant,
    checked_count,
    checked_mapping,
    checked_names,
    checked_types,
    schema_error,
)
from mistralrs.grammar.library_limits import MAX_RULES
from mistralrs.grammar.translation import reason_in

if TYPE_CHECKING:
    from mistralrs.api.serving.grammars.notation_grammar import NotationGrammar
    from mistralrs.api.serving.grammars.tool_choice import Tool

_HINT = "leave strict out, and let the model choose freely whether to call"
_MAX_DEPTH = 64
_NUMBERS = {*BOUNDS, "multipleOf"}
_KEYWORDS: Mapping[str, set[str]] = {
    "string": {"minLength", "maxLength"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
    "number": _NUMBERS,
    "integer": _NUMBERS,
}
"""The keywords that are held, by the type that they are about."""
_WHOLE = ("$ref", "const", "enum", "anyOf", "allOf")
"""Keywords that are held alone, or beside ``type``."""
_ANY_TYPES = ("string", "array", "object", "number", "boolean", "null")


def argument_rules(tool: Tool, place: int, grammar: NotationGrammar, *, held: bool) -> Iterator[str]:
    """Yields the rules of ``arguments_PLACE``; ``held``: they match the tool's schema, otherwise they are any.

    Properties come in the schema's order, and no others. Raises RequestError with the path of what cannot be held.
    """
    if not held:
        yield f"arguments_{place}: any_arguments"
        return
    try:
        yield from _SchemaRules(grammar, tool, place).rules()
    except RequestError as error:
        reason = reason_in(error)
        message = f"{tool.path}{reason}" if reason.startswith("/") else f"{tool.path}: {reason}"
        raise RequestError(message, hint=error.hint or _HINT, code="invalid_schema", param=tool.path) from None


class _SchemaRules:
    """The rules of the arguments of one tool."""

    def __init__(self, grammar: NotationGrammar, tool: Tool, place: int) -> None:
        self._grammar = grammar
        self._notation = grammar.notation
        self._schema = dict(tool.schema)
        self._name = f"arguments_{place}"
        self._references = References(self._schema)
        self._named: dict[str, str] = {}
        self._waiting: list[tuple[str, str]] = []
        self._rules: list[str] = []
        self._count = 0

    def rules(self) -> list[str]:
        """Returns the rules. Raises RequestError with the JSON pointer of what cannot be held."""
        schema = self._schema
        self._check_keywords(schema, "", {"type", *_KEYWORDS["object"]})
        self._object(schema, "", self._name, top=True, depth=0)
        while self._waiting:
            target, pointer = self._waiting.pop()
            value = self._value(self._references.at(target, pointer), target, depth=0)
            self._add(f"{self._named[target]}: {value}")
        return self._rules

    def _add(self, *rules: str) -> None:
        self._rules.extend(rules)
        if len(self._rules) > MAX_RULES:
            raise schema_error("", f"it has more than {MAX_RULES} rules in this model's form of calls")

    def _fresh(self) -> str:
        self._count += 1
        return f"{self._name}_{self._count}"

    def _value(self, given: object, pointer: str, *, depth: int) -> str:
        """Returns the symbol of a value that matches a schema."""
        schema = as_schema(given, pointer)
        if depth > _MAX_DEPTH:
            raise schema_error(pointer, f"the schema has more than {_MAX_DEPTH} levels")
        if schema is False:
            raise schema_error(pointer, "no value matches it")
        if schema is True:
            return "any_value"
        whole = [keyword for keyword in _WHOLE if keyword in schema]
        if len(whole) > 1:
            raise schema_error(f"{pointer}/{whole[1]}", f"{whole[1]} beside {whole[0]} {CANNOT}")
        if whole:
            return self._of_whole(whole[0], schema, pointer, depth=depth)
        types = checked_types(schema["type"], f"{pointer}/type") if "type" in schema else [*_ANY_TYPES]
        if "number" in types and "integer" in types:
            types.remove("integer")
        self._check_keywords(schema, pointer, {"type"}.union(*(_KEYWORDS.get(each, set()) for each in types)))
        if types == [*_ANY_TYPES] and not any(key in schema for keys in _KEYWORDS.values() for key in keys):
            return "any_value"
        return f"({' | '.join(self._of_type(each, schema, pointer, depth=depth) for each in types)})"

    def _of_whole(self, keyword: str, schema: dict[str, Any], pointer: str, *, depth: int) -> str:
        """Returns the symbol of a value to which one keyword applies."""
        place, value = f"{pointer}/{keyword}", schema[keyword]
        self._check_keywords(schema, pointer, {keyword, *(("type",) if keyword in ("const", "enum") else ())})
        if keyword == "$ref":
            return self._reference(value, place)
        values = [value] if keyword == "const" else value
        if not isinstance(values, list) or not values:
            raise schema_error(place, "it is not a list of one or more")
        if keyword == "allOf" and len(values) > 1:
            raise schema_error(place, f"allOf with several schemas {CANNOT}")
        if keyword in ("anyOf", "allOf"):
            parts = [self._value(each, f"{place}/{index}", depth=depth + 1) for index, each in enumerate(values)]
            return f"({' | '.join(dict.fromkeys(parts))})"
        types = checked_types(schema["type"], f"{pointer}/type") if "type" in schema else TYPES
        found = [self._grammar.constant(each, place) for each in values if _type_of(each) & set(types)]
        if not found:
            raise schema_error(place, "no value matches it")
        return f"({' | '.join(dict.fromkeys(found))})"

    def _of_type(self, kind: str, schema: dict[str, Any], pointer: str, *, depth: int) -> str:
        if kind == "boolean":
            return '"true" | "false"'
        if kind == "null":
            return '"null"'
        name = self._fresh()
        if kind == "string":
            least, most = self._counts(schema, "Length", pointer)
            self._add(*self._grammar.text_rules(name, name.upper(), least=least, most=most))
        elif kind == "array":
            least, most = self._counts(schema, "Items", pointer)
            item = self._value(schema.get("items", True), f"{pointer}/items", depth=depth + 1)
            self._add(f"{name}_item: {item}", f"{name}: {self._grammar.array(f'{name}_item', least, most)}")
        elif kind == "object":
            self._object(schema, pointer, name, top=False, depth=depth)
        else:
            number = {"type": kind, **{key: schema[key] for key in _NUMBERS if key in schema}}
            try:
                inline_schema(number)
            except RequestError as error:
                raise schema_error(pointer, reason_in(error)) from None
            self._add(f"{name}: %json {json.dumps(number)}")
        return name

    def _object(self, schema: dict[str, Any], pointer: str, name: str, *, top: bool, depth: int) -> None:
        properties = checked_mapping(schema.get("properties", {}), f"{pointer}/properties")
        required = checked_names(schema.get("required", []), f"{pointer}/required")
        if missing := [key for key in required if key not in properties]:
            raise schema_error(f"{pointer}/required", f"{missing[0]} has no schema")
        others = as_schema(schema.get("additionalProperties", True), f"{pointer}/additionalProperties")
        if not properties and others is not False:
            if top and others is not True:
                raise schema_error(f"{pointer}/additionalProperties", f"a schema for all arguments {CANNOT}")
            if top:
                self._add(f"{name}: any_arguments")
                return
            value = self._value(others, f"{pointer}/additionalProperties", depth=depth + 1)
            self._add(f"{name}_value: {value}", f"{name}: {self._grammar.any_members(f'{name}_value')}")
            return
        form = self._notation.argument if top else self._notation.member
        members = []
        for key, each in properties.items():
            place, symbol = f"{pointer}/properties/{escaped(key)}", self._fresh()
            checked_constant(key, place)
            if not self._notation.has_key(key, form):
                raise schema_error(place, f"its name {CANNOT}")
            value = self._value(each, place, depth=depth + 1)
            self._add(f"{symbol}: {literal(self._notation.spelt_key(key, form))} {value}")
            members.append((symbol, key in required))
        self._add(*self._grammar.enclosed_members(members, name, top=top))

    def _reference(self, reference: object, pointer: str) -> str:
        target = self._references.pointer_of(reference, pointer)
        if target not in self._named:
            self._named[target] = self._fresh()
            self._waiting.append((target, pointer))
        return self._named[target]

    def _counts(self, schema: Mapping[str, Any], counted: str, pointer: str) -> tuple[int, int | None]:
        least, most = (
            None if key not in schema else checked_count(key, schema[key], f"{pointer}/{key}")
            for key in (f"min{counted}", f"max{counted}")
        )
        if most is not None and most < (least or 0):
            raise schema_error(f"{pointer}/max{counted}", f"it is below min{counted}")
        return least or 0, most

    def _check_keywords(self, schema: Mapping[str, Any], pointer: str, held: set[str]) -> None:
        for keyword, value in schema.items():
            if keyword in held or keyword in ANNOTATIONS or (keyword in NEUTRAL and value is NEUTRAL[keyword]):
                continue
            place = f"{pointer}/{escaped(keyword)}"
            if keyword in HELD or keyword in REFUSED:
                raise schema_error(place, f"{keyword} {CANNOT}")
            if (meant := misspelt(keyword)) is not None:
                raise schema_error(place, f"{keyword} is not a keyword", hint=f"did you mean {meant}?")


def _type_of(value: object) -> set[str]:
    """Returns the names of the types that a value has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if float(value).is_integer() else {"number"}
    names = {"str": "string", "list": "array", "dict": "object"}
    return {names.get(type(value).__name__, "null")}
