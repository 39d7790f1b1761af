"""JSON schemas: a schema is rewritten into one that llguidance holds to the letter, or refused with its JSON pointer.

Generated objects have their listed properties in the schema's order. Texts have each character in one spelling, so that
two spellings of a name cannot be two members; characters that JSON can only spell by number, such as U+0001, are never
generated.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from llguidance import LLMatcher

from mistralrs.errors import RequestError
from mistralrs.grammar.json_keywords import ANNOTATIONS, COUNTS, HELD, NEUTRAL, OWN_FORMATS, REFUSED, misspelt
from mistralrs.grammar.json_pattern import depends_on_validator
from mistralrs.grammar.json_references import References, escaped
from mistralrs.grammar.json_values import (
    Schema,
    as_schema,
    checked_constant,
    checked_count,
    checked_format,
    checked_mapping,
    checked_names,
    checked_number,
    checked_pattern,
    checked_text,
    checked_types,
    schema_error,
)
from mistralrs.grammar.library_limits import NO_FORCING, error_of, is_empty, reason_of
from mistralrs.grammar.translation import Translation, grammar_error, reason_in
from mistralrs.parsing import parse_nested

MAX_DEPTH = 64
MAX_SCHEMAS = 3_000
MAX_REFERENCES = 500
MAX_PATTERNS = 32
MAX_WHITESPACE = 64
"""Characters of whitespace between two parts. Without a bound, a model that is lost may write it for ever."""
_WHITESPACE = rf"[ \n\r\t]{{1,{MAX_WHITESPACE}}}"
_ESCAPES = 'nrbtf\\"'
_MAX_PROBES = 300
_Json = dict[str, Any]


def translate_schema(text: str) -> Translation:
    """The translation of a JSON schema. Raises RequestError with the JSON pointer of what cannot be held."""
    schema, options = rewritten_schema(_parsed(text))
    if options.get("whitespace_pattern") != _WHITESPACE:  # with no choice anywhere, forced bytes may have no end
        return Translation(f"{NO_FORCING}\nstart: %json {json.dumps({**schema, 'x-guidance': options})}")
    return Translation(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))  # type: ignore[arg-type]


def translate_object(text: str) -> Translation:
    """The translation of "any JSON object". Raises RequestError for a text, because there is nothing to say."""
    if text.strip() not in ("", "{}"):
        raise grammar_error("json_object takes no text", hint="give a schema as json_schema")
    return translate_schema('{"type": "object"}')


def inline_schema(value: object) -> str:
    """A schema as llguidance's Lark dialect embeds it, options among its members."""
    schema, options = rewritten_schema(as_schema(value, ""))
    return json.dumps({**schema, "x-guidance": options})


def rewritten_schema(schema: Schema) -> tuple[_Json, _Json]:
    """The schema that the library gets, and its options, which nothing in the schema can change."""
    options: _Json = {
        "lenient": False,
        "coerce_one_of": False,
        "whitespace_flexible": True,
        "whitespace_pattern": _whitespace(schema),
        "item_separator": ",",
        "key_separator": ":",
        "json_allowed_escapes": _ESCAPES,
    }
    if options["whitespace_pattern"] is None:
        options["whitespace_flexible"] = False
        del options["whitespace_pattern"]
    if schema is False:
        raise schema_error("", "no value matches it")
    rewriter = _Rewriter(schema)
    root = rewriter.rewritten_object({} if schema is True else schema, "")
    rewriter.rewrite_references()
    if error := rewriter.error_of(root):
        rewriter.refuse(root, error)
    return rewriter.with_definitions(root), options


def _parsed(text: str) -> Schema:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"it has {name}")

    try:
        value = parse_nested(json.loads, text, parse_constant=refuse)
    except ValueError as error:
        raise grammar_error(f"the schema is not JSON: {error}") from None
    return as_schema(value, "")


def _whitespace(schema: Schema) -> str | None:
    """The expression of the whitespace that a schema asks for under ``x-guidance``; None for no whitespace."""
    wishes = schema.get("x-guidance") if isinstance(schema, dict) else None
    if not isinstance(wishes, dict):
        return _WHITESPACE
    pattern = wishes.get("whitespace_pattern")
    if pattern is None:
        return None if wishes.get("whitespace_flexible") is False else _WHITESPACE
    place = "/x-guidance/whitespace_pattern"
    if not isinstance(pattern, str):
        raise schema_error(place, "it is not a text")
    other = r"(?s:.*)[^ \n\r\t](?s:.*)"
    terminal = pattern.replace("/", r"\/")
    try:
        is_whitespace = is_empty(f"start: X\nX: /{terminal}/ & /{other}/")
    except RequestError as error:
        raise schema_error(place, reason_in(error)) from None
    if not is_whitespace:
        hint = "JSON has no other whitespace than [ \\n\\r\\t]"
        raise schema_error(place, "it matches more than whitespace", hint=hint)
    return pattern


class _Rewriter:
    """Rewrites the schemas of one text, and remembers the place of each."""

    def __init__(self, root: Schema) -> None:
        self._references = References(root)
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Schema] = {}
        self._waiting: list[tuple[str, str]] = []
        self._places: dict[int, str] = {}
        self._parts: dict[int, list[_Json]] = {}
        self._count = 0
        self._probes = 0

    def rewritten(self, schema: Schema, pointer: str, *, depth: int = 0) -> Schema:
        """A schema as the library gets it, keywords in an order in which it reads them right."""
        self._count += 1
        if self._count > MAX_SCHEMAS:
            raise schema_error(pointer, f"the schema has more than {MAX_SCHEMAS} parts")
        if depth > MAX_DEPTH:
            raise schema_error(pointer, f"the schema has more than {MAX_DEPTH} levels")
        return schema if isinstance(schema, bool) else self.rewritten_object(schema, pointer, depth=depth)

    def rewritten_object(self, schema: _Json, pointer: str, *, depth: int = 0) -> _Json:
        """The same for a schema that is an object."""
        if pointer and isinstance(schema.get("$id"), str) and "$ref" in json.dumps(schema):
            raise schema_error(f"{pointer}/$id", "an $id inside of a schema with references is not supported")
        self._check_keywords(schema, pointer)
        found: _Json = {}
        self._parts[id(found)] = []
        self._places[id(found)] = pointer
        self._add_values(found, schema, pointer)
        self._add_object(found, schema, pointer, depth=depth)
        self._add_array(found, schema, pointer, depth=depth)
        return self._with_applicators(found, schema, pointer, depth=depth)

    def rewrite_references(self) -> None:
        """Rewrites the schemas that references name, until all are there."""
        while self._waiting:
            target, pointer = self._waiting.pop()
            self._definitions[self._names[target]] = self.rewritten(self._references.at(target, pointer), target)

    def with_definitions(self, schema: _Json) -> _Json:
        """The schema with all that its references name."""
        return {**schema, "$defs": self._definitions} if self._definitions else schema

    def error_of(self, schema: _Json) -> str:
        """The library's reason to refuse the schema; empty if it does not."""
        self._probes += 1
        text = json.dumps(self.with_definitions(schema))
        return error_of(LLMatcher.grammar_from_json_schema(text, overrides={"lenient": False, "coerce_one_of": False}))

    def refuse(self, schema: _Json, error: str) -> NoReturn:
        """Raises the error of the innermost part that the library refuses for the same reason."""
        place = schema
        seen: set[int] = set()
        while id(place) not in seen:
            seen.add(id(place))
            parts = [*self._parts[id(place)], *(self._definitions.values() if place is schema else ())]
            inner = (part for part in parts if isinstance(part, dict) and self._probes < _MAX_PROBES)
            found = next((part for part in inner if self.error_of(part) == error), None)
            if found is None:
                break
            place = found
        pointer = self._places.get(id(place), "")
        if "oneOf" in error:
            raise schema_error(
                f"{pointer}/oneOf",
                "its alternatives may overlap, and text that matches exactly one cannot be told from other text",
                hint="use anyOf, or alternatives with different types or with a property of different constants",
            )
        if "patternProperty" in error:
            raise schema_error(f"{pointer}/patternProperties", "its patterns may match the same name")
        raise schema_error(pointer, reason_of(error))

    def _check_keywords(self, schema: _Json, pointer: str) -> None:
        for keyword, value in schema.items():
            if keyword in NEUTRAL and value is NEUTRAL[keyword]:
                continue
            place = f"{pointer}/{escaped(keyword)}"
            if keyword in REFUSED or (keyword == "uniqueItems" and value is not False):
                raise schema_error(place, f"{keyword} is not supported: generated text would not obey it")
            if keyword in HELD or keyword in ANNOTATIONS:
                continue
            if (meant := misspelt(keyword)) is not None:
                raise schema_error(place, f"{keyword} is not a keyword", hint=f"did you mean {meant}?")

    def _add_values(self, found: _Json, schema: _Json, pointer: str) -> None:
        if "type" in schema:
            types = checked_types(schema["type"], f"{pointer}/type")
            found["type"] = types[0] if len(types) == 1 else types
        for keyword in COUNTS:
            if keyword in schema:
                found[keyword] = checked_count(keyword, schema[keyword], f"{pointer}/{keyword}")
        self._add_bounds(found, schema, pointer)
        if "pattern" in schema:
            found["pattern"] = checked_pattern(schema["pattern"], f"{pointer}/pattern")
        if "format" in schema and (name := checked_format(schema["format"], f"{pointer}/format")):
            if name not in OWN_FORMATS:
                found["format"] = name
            elif "pattern" in found:
                raise schema_error(f"{pointer}/format", f"the format {name} beside a pattern is not supported")
            else:
                found["pattern"] = OWN_FORMATS[name]

    def _add_bounds(self, found: _Json, schema: _Json, pointer: str) -> None:
        for keyword in ("minimum", "maximum"):
            exclusive = f"exclusiveM{keyword[1:]}"
            if keyword in schema:
                found[keyword] = checked_number(schema[keyword], f"{pointer}/{keyword}")
            if exclusive in schema and schema[exclusive] is True and keyword in found:  # as in draft 4
                found[exclusive] = found.pop(keyword)
            elif exclusive in schema and schema[exclusive] is not False:
                found[exclusive] = checked_number(schema[exclusive], f"{pointer}/{exclusive}")
        if "multipleOf" in schema:
            place = f"{pointer}/multipleOf"
            found["multipleOf"] = checked_number(schema["multipleOf"], place)
            if found["multipleOf"] <= 0:
                raise schema_error(place, "it is not above 0")

    def _add_object(self, found: _Json, schema: _Json, pointer: str, *, depth: int) -> None:
        for keyword in ("properties", "patternProperties"):
            if keyword not in schema:
                continue
            place = f"{pointer}/{keyword}"
            members = checked_mapping(schema[keyword], place)
            names = {}
            for name, member in members.items():
                inner = f"{place}/{escaped(name)}"
                key = checked_text(name, inner) if keyword == "properties" else checked_pattern(name, inner)
                names[key] = self._part(found, member, inner, depth=depth)
            if keyword == "patternProperties" and len(names) > MAX_PATTERNS:
                raise schema_error(place, f"{len(names)} patterns are more than {MAX_PATTERNS}")
            found[keyword] = names
        if "additionalProperties" in schema:
            place = f"{pointer}/additionalProperties"
            found["additionalProperties"] = self._part(found, schema["additionalProperties"], place, depth=depth)
        if schema.get("additionalProperties") is not False:
            for name in schema.get("patternProperties", ()):
                if depends_on_validator(name):
                    raise schema_error(
                        f"{pointer}/patternProperties/{escaped(name)}",
                        "validators disagree on the names that it leaves to additionalProperties",
                        hint="write the class out, or set additionalProperties to false",
                    )
        if "required" in schema:
            found["required"] = checked_names(schema["required"], f"{pointer}/required")
        if found.get("minProperties", 0) > 1:  # names that repeat would be counted twice
            if found["minProperties"] > len(found.get("required", ())):
                raise schema_error(f"{pointer}/minProperties", "more than 1 is not supported beyond required names")
            del found["minProperties"]

    def _add_array(self, found: _Json, schema: _Json, pointer: str, *, depth: int) -> None:
        if isinstance(schema.get("items"), list):  # as in drafts before 2020-12
            prefix, rest = "items", "additionalItems"
        else:
            prefix, rest = "prefixItems", "items"
        if prefix in schema:
            members = schema[prefix]
            if not isinstance(members, list):
                raise schema_error(f"{pointer}/{prefix}", "it is not a list of schemas")
            found["prefixItems"] = [
                self._part(found, member, f"{pointer}/{prefix}/{index}", depth=depth)
                for index, member in enumerate(members)
            ]
        if rest in schema:
            found["items"] = self._part(found, schema[rest], f"{pointer}/{rest}", depth=depth)

    def _with_applicators(self, found: _Json, schema: _Json, pointer: str, *, depth: int) -> _Json:
        """Adds what applies whole schemas. Each gets a part of its own, because the library merges in order."""
        more: list[Schema] = []
        for keyword in ("const", "enum"):
            if keyword in schema:
                more.append({keyword: self._constants(keyword, schema[keyword], f"{pointer}/{keyword}")})
        if "$ref" in schema:
            more.append({"$ref": self._reference(schema["$ref"], f"{pointer}/$ref")})
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword not in schema:
                continue
            place = f"{pointer}/{keyword}"
            if not isinstance(schema[keyword], list) or not schema[keyword]:
                raise schema_error(place, "it is not a list of schemas")
            parts = [
                self._part(found, member, f"{place}/{index}", depth=depth)
                for index, member in enumerate(schema[keyword])
            ]
            more += parts if keyword == "allOf" else [{keyword: parts}]
        if not more:
            return found
        if not found and len(more) == 1 and isinstance(more[0], dict) and id(more[0]) not in self._places:
            found.update(more[0])
        else:
            found["allOf"] = more
        return found

    def _part(self, found: _Json, schema: object, pointer: str, *, depth: int) -> Schema:
        part = self.rewritten(as_schema(schema, pointer), pointer, depth=depth + 1)
        if isinstance(part, dict):
            self._parts[id(found)].append(part)
        return part

    def _constants(self, keyword: str, value: object, pointer: str) -> object:
        if keyword == "const":
            return checked_constant(value, pointer)
        if not isinstance(value, list) or not value:
            raise schema_error(pointer, "it is not a list of values")
        return [checked_constant(each, f"{pointer}/{index}") for index, each in enumerate(value)]

    def _reference(self, reference: object, pointer: str) -> str:
        target = self._references.pointer_of(reference, pointer)
        if target not in self._names:
            if len(self._names) >= MAX_REFERENCES:
                raise schema_error(pointer, f"the schema refers to more than {MAX_REFERENCES} parts")
            self._names[target] = f"d{len(self._names)}"
            self._waiting.append((target, pointer))
        return f"#/$defs/{self._names[target]}"
