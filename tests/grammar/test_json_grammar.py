"""JSON schemas: obeyed to the letter or refused with a pointer; the public test suite if it is fetched."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from mistralrs.errors import RequestError
from tests.grammar.json_checks import is_valid, spellings
from tests.grammar.walks import accepts, allowed, compiled, generate, table

SUITE = Path(
    os.environ.get("MISTRALRS_TEST_SCHEMA_SUITE", Path(__file__).parents[2] / ".fixtures" / "json-schema-suite")
)
SAMPLE = 120
NOT_VALIDATION = ("format.json", "vocabulary.json")
"""Files of the suite in which a keyword is an annotation that is obeyed here nevertheless."""
NEVER_GENERATED = ("date-time.json", "email.json", "ipv6.json", "time.json")
"""Formats of which rarer forms, such as leap seconds and quoted local parts, are not generated."""


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"uniqueItems": True}, "/uniqueItems"),
        ({"properties": {"a/b": {"items": {"not": {}}}}}, "/properties/a~1b/items/not"),
        ({"allOf": [{}, {"if": {}, "then": {}}]}, "/allOf/1/if"),
        ({"$defs": {"x": {"contains": {}}}, "$ref": "#/$defs/x"}, "/$defs/x/contains"),
        ({"items": {"dependentRequired": {}}}, "/items/dependentRequired"),
        ({"properties": {"a": {"nullable": True}}}, "/properties/a/nullable"),
        ({"minLenght": 3}, "/minLenght"),
        ({"type": "strin"}, "/type"),
        ({"type": "string", "format": "iri"}, "/format"),
        ({"items": {"pattern": "(?=a)"}}, "/items/pattern"),
        ({"items": {"pattern": "a(^b)"}}, "/items/pattern"),
        ({"items": {"pattern": r"\bword"}}, "/items/pattern"),
        ({"minimum": 1e30}, "/minimum"),
        ({"enum": [1, {"a": [9007199254740993]}]}, "/enum/1"),
        ({"const": "\x01"}, "/const"),
        ({"properties": {"a\x02": {}}}, r"/properties/a"),
        ({"maxItems": 10_000_000}, "/maxItems"),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"minProperties": 3}, "/minProperties"),
        ({"$ref": "http://example.com/schema"}, "/$ref"),
        ({"$ref": "#/$defs/nothing"}, "/$ref"),
        ({"properties": {"a": {"$id": "x", "$ref": "#"}}}, "/properties/a/$id"),
        ({"properties": {"a": {"oneOf": [{"type": "integer"}, {"minimum": 5}]}}}, "/properties/a/oneOf"),
        ({"patternProperties": {"^a": {}, "b$": {}}}, "/patternProperties"),
        ({"patternProperties": {r"^\w$": {"type": "null"}}}, "/patternProperties/"),
        ({"properties": 3}, "/properties"),
        ({"properties": {"a": 3}}, "/properties/a"),
        ({"required": "a"}, "/required"),
        ({"allOf": []}, "/allOf"),
        ({"x-guidance": {"whitespace_pattern": ".*"}}, "/x-guidance/whitespace_pattern"),
        (False, "the schema"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "the schema"),
    ],
)
def test_what_is_not_held_is_refused_with_its_pointer(schema: Any, pointer: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled("json_schema", json.dumps(schema))
    assert f": {pointer}" in caught.value.message
    assert caught.value.code == "invalid_grammar"


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, ['{"a":1}', '{"b":"x"}'], ['{"a":"x"}']),
        (
            {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
            ['{"a":1,"b":"x"}', '{"\\n":"x"}'],
            ['{"\\u0061":"x"}', '{"\\u0062":"x"}', '{"a":"x"}'],
        ),
        ({"patternProperties": {"^x": {}}, "additionalProperties": False}, ['{"x":null}', "{}"], ['{"y":1}']),
        ({"patternProperties": {"^x": {"type": "null"}}}, ['{"y":1}'], ['{"x":1}', '{"\\u0078":1}']),
        (
            {"additionalProperties": False, "allOf": [{"properties": {"a": {}}}], "properties": {"b": {}}},
            ['{"b":1}'],
            ['{"a":1}', '{"a":1,"b":1}'],
        ),
        ({"type": "array", "items": [{"const": 1}], "additionalItems": False}, ["[1]", "[]"], ["[1,1]", "[2]"]),
        ({"minimum": 3, "exclusiveMinimum": True, "type": "integer"}, ["4"], ["3"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"0000-01-01"']),
        ({"type": "string", "format": "int32"}, ['"x"'], ["1"]),
        ({"pattern": "^a|b$"}, ['"ax"', '"xb"', "1"], ['"xa"']),
        ({"pattern": "^(a|b)$|^c"}, ['"a"', '"cx"'], ['"ab"']),
        ({"pattern": "(^a$|^b$)"}, ['"a"', '"b"'], ['"ab"']),
        ({"pattern": r"^\u00e9\/[\w-]{2}$"}, ['"é/a-"'], ['"é/a"']),
        ({"pattern": "^[^\\s]$"}, ['"a"'], ['" "', '"\ufeff"', '"\x85"']),
        ({"pattern": "^.$"}, ['"a"'], ['"\\n"', '"\\r"']),
        ({"pattern": "^$"}, ['""'], ['"a"']),
        (
            {"$defs": {"n": {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/n"}, "type": "array"}]}},
             "$ref": "#/$defs/n"},
            ["null", "[[],[null]]"],
            ["[1]"],
        ),
        ({"$anchor": "here", "type": "array", "items": {"$ref": "#here"}}, ["[[]]"], ["[1]"]),
        ({"x-guidance": {"whitespace_flexible": False}, "type": "array"}, ["[1,2]"], ["[1, 2]"]),
        ({"x-guidance": {"whitespace_pattern": " ?"}, "type": "array"}, ["[1, 2]"], ["[1,  2]"]),
        ({"x-guidance": {"item_separator": "x", "lenient": True}, "type": "array"}, ["[1,2]"], ["[1x2]"]),
        (True, ["1", "{}"], ["x"]),
        ({"title": "t", "default": 3, "examples": [1], "deprecated": True, "x-mine": {}, "ui:order": 1}, ["1"], ["x"]),
        ({"minProperties": 2, "required": ["a", "b"], "type": "object"}, ['{"a":1,"b":2}'], ['{"a":1}']),
        ({"enum": [1.5, 100, "x"]}, ["1.5", "100", '"x"'], ["1.6", "10"]),
        ({"uniqueItems": False, "unevaluatedProperties": True}, ["[1,1]"], []),
    ],
)  # fmt: skip
def test_schemas_are_obeyed(schema: Any, valid: list[str], invalid: list[str]) -> None:
    grammar = compiled("json_schema", json.dumps(schema))
    assert [answer for answer in valid if not accepts(grammar, answer)] == []
    assert [answer for answer in invalid if accepts(grammar, answer)] == []


def test_whitespace_ends() -> None:
    """A model that writes nothing but whitespace gets to something else."""
    schema = {"patternProperties": {"^x": {}}, "additionalProperties": False}
    constraint = compiled("json_schema", json.dumps(schema)).constraint()
    spaces = 0
    assert constraint.accept(table().tokens_of(b"{")) == 1
    while (space := table().tokens_of(b" ")[0]) in allowed(constraint):
        assert constraint.accept([space]) == 1
        spaces += 1
    assert spaces == 64
    assert constraint.accept(table().tokens_of(b"}")) == 1


def _suite() -> list[tuple[str, dict[str, Any]]]:
    files = sorted([*SUITE.glob("*.json"), *(SUITE / "optional" / "format").glob("*.json")])
    if not files:
        pytest.skip("the JSON Schema Test Suite is not here; to get it: make fixtures")
    return [
        (file.name, case)
        for file in files
        for case in json.loads(file.read_text(encoding="utf-8"))
        if file.name not in NOT_VALIDATION
    ]


def test_the_public_suite_is_obeyed_or_refused() -> None:
    """No instance of the suite that is invalid is ever accepted; every valid one is, in some spelling."""
    cases = random.Random(5).sample(_suite(), SAMPLE)
    wrong, refusals, compiled_cases = [], [], 0
    for name, case in cases:
        try:
            grammar = compiled("json_schema", json.dumps(case["schema"]))
        except RequestError as error:
            refusals.append(error.message)
            continue
        compiled_cases += 1
        for test in case["tests"]:
            found = any(accepts(grammar, spelling) for spelling in spellings(test["data"]))
            if found != test["valid"] and not (test["valid"] and name in NEVER_GENERATED):
                wrong.append((name, case["description"], test["description"]))
    assert wrong == []
    assert [message for message in refusals if ": /" not in message and ": the schema: " not in message] == []
    assert compiled_cases > SAMPLE // 4


def test_answers_under_the_schemas_of_the_public_suite_are_valid() -> None:
    rng = random.Random(6)
    finished = 0
    for _, case in rng.sample(_suite(), SAMPLE):
        try:
            grammar = compiled("json_schema", json.dumps(case["schema"]))
        except RequestError:
            continue
        answer = generate(grammar, rng)
        if answer is not None:
            finished += 1
            assert is_valid(answer, case["schema"]), (case["schema"], answer)
    assert finished > 20
