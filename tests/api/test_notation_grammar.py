"""Arguments in notations other than JSON: what a grammar allows is read as arguments that match their schema."""

from __future__ import annotations

import json
import random
from array import array
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema
import pytest

from mistralrs.api.serving.answers.choice_parts import ChoiceParts
from mistralrs.api.serving.prepare import Prepared
from mistralrs.engine.events import Delta
from mistralrs.errors import RequestError
from mistralrs.grammar.compile_grammar import compile_grammar
from mistralrs.grammar.token_table import TokenTable
from mistralrs.text.response.call_format import FORMATS
from mistralrs.text.response.shipped_templates import shipped_template
from mistralrs.text.tokenizer import Tokenizer
from tests.api.served import served
from tests.api.tooling import HERMES, ask, tool
from tests.text.vocabularies import CONTROL, byte_level

MARKS = {
    "olmo-3": ("<function_calls>", "</function_calls>", "<think>", "</think>"),
    "functiongemma": ("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma-3": (),
    "harmony": ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
}
"""Control tokens that models of each form have."""
NOTED = [name for name, form in FORMATS.items() if form.notation is not None]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": 6},
        "code": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 2}, {"type": "null"}]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "pick": {"enum": ["a]", "b}", 'say "c"', 3, None, {"k": ["v", True]}]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        "tree": {"$ref": "#/$defs/tree"},
        "more": {"type": "object", "additionalProperties": {"const": "x"}},
        "any": {},
        "only": {"allOf": [{"type": ["number", "boolean"]}]},
    },
    "required": ["n"],
    "additionalProperties": False,
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"leaf": {"type": "string"}, "next": {"$ref": "#/$defs/tree"}},
            "required": ["leaf"],
        }
    },
}
DEEP = tool("deep", parameters=SCHEMA)


@cache
def tokenizer(marks: tuple[str, ...]) -> Tokenizer:
    metadata = byte_level()
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    return Tokenizer.from_gguf(byte_level(tokens=[*tokens, *marks], token_type=[*kinds, *[CONTROL] * len(marks)]))


@cache
def table(marks: tuple[str, ...]) -> TokenTable:
    return TokenTable(tokenizer(marks))


def asked(name: str, *, marks: tuple[str, ...] = (), **fields: Any) -> Prepared:
    model = served(HERMES, tokenizer=tokenizer(marks), max_len=4000)
    model = replace(model, responses=shipped_template(name), call_format=FORMATS[name])
    return ask(model, **{"tools": [DEEP], "tool_choice": "required", **fields})


def accepts(prepared: Prepared, text: str, *, marks: tuple[str, ...] = ()) -> bool:
    held = prepared.requests[0].grammar
    assert held is not None
    constraint = compile_grammar(held.kind, held.text, table(marks), timeout_s=60).constraint()
    ids = tokenizer(marks).encode(text, special=True)
    if constraint.accept(ids) < len(ids):
        return False
    mask = array("I", [0]) * table(marks).mask_words
    constraint.mask(mask)
    return constraint.is_accepting


def read(prepared: Prepared, text: str) -> list[tuple[str, Any]]:
    assert prepared.parts is not None
    parts = ChoiceParts(0, prepared.parts.parser())
    parts.push(Delta(text, (1,), ()))
    parts.finish()
    return [(each.name, json.loads(each.arguments)) for each in parts.calls]


GOOD: list[dict[str, Any]] = [
    {"n": 1},
    {"text": 'é"\\\n(', "n": 99, "pick": "a]"},
    {"code": "日本", "n": 0, "pick": {"k": ["v", True]}, "tags": [True, False]},
    {"code": None, "n": 0, "pick": None, "tree": {"leaf": "}]", "next": {"leaf": "", "next": {"leaf": ")"}}}},
    {"n": 2, "more": {"a": "x", "b": "x"}, "any": [{"q": ["[", {}]}, -1.5, None, "="], "only": 1.5},
    {"n": 2, "more": {}, "any": {"deep": {"er": [[[["x"]]]]}}, "only": True},
]
BAD: list[dict[str, Any]] = [
    {},
    {"n": 100},
    {"n": "1"},
    {"text": "1234567", "n": 1},
    {"code": "abc", "n": 1},
    {"n": 1, "pick": "a"},
    {"n": 1, "tags": []},
    {"n": 1, "tags": [True, True, True]},
    {"n": 1, "tree": {"next": {"leaf": "a"}}},
    {"n": 1, "more": {"a": "y"}},
    {"n": 1, "only": "x"},
    {"n": 1, "other": 1},
]


@pytest.mark.parametrize("with_marks", [False, True])
@pytest.mark.parametrize("name", NOTED)
def test_arguments_that_a_schema_allows(name: str, with_marks: bool) -> None:
    marks = MARKS[name] if with_marks else ()
    prepared = asked(name, marks=marks)
    for arguments in GOOD:
        text = FORMATS[name].written([("deep", json.dumps(arguments))])
        assert accepts(prepared, text, marks=marks), text
        assert read(prepared, text) == [("deep", arguments)]
    for arguments in BAD:
        text = FORMATS[name].written([("deep", json.dumps(arguments))])
        assert not accepts(prepared, text, marks=marks), text
    any_arguments = FORMATS[name].written([("deep", '{"x": {"y": [1, "z"]}, "n": null}')])
    auto = asked(name, marks=marks, tool_choice="auto", parallel_tool_calls=False)
    assert accepts(auto, "I look. " + any_arguments, marks=marks)
    assert accepts(auto, "I look.", marks=marks)
    assert not accepts(auto, any_arguments * 2, marks=marks)


@pytest.mark.parametrize("name", NOTED)
def test_no_text_ends_its_call(name: str) -> None:
    notation = FORMATS[name].notation
    assert notation is not None
    for end in filter(None, (*notation.ends, notation.text_mark)):
        anything = {"type": "object", "properties": {"a": {"type": "string"}}}
        prepared = asked(name, tools=[tool("deep", parameters=anything)])
        almost, whole = (FORMATS[name].written([("deep", json.dumps({"a": text}))]) for text in (end[:-1], f"x{end}"))
        assert accepts(prepared, almost)
        assert read(prepared, almost) == [("deep", {"a": end[:-1]})]
        assert not accepts(prepared, whole)
        with pytest.raises(RequestError, match=r"parameters/properties/a/enum: a text of it ends the call"):
            asked(name, tools=[tool("deep", parameters={"properties": {"a": {"enum": [end]}}})])


@pytest.mark.parametrize("name", ["functiongemma", "harmony"])
def test_random_answers_are_read_as_calls_that_match(name: str) -> None:
    rng = random.Random(5)
    prepared = asked(name, marks=MARKS[name])
    held, tokens, vocabulary = prepared.requests[0].grammar, tokenizer(MARKS[name]), table(MARKS[name])
    assert held is not None
    compiled = compile_grammar(held.kind, held.text, vocabulary, timeout_s=60)
    num_read = 0
    for _ in range(8):
        constraint, text = compiled.constraint(), b""
        for _ in range(300):
            mask = array("I", [0]) * vocabulary.mask_words
            constraint.mask(mask)
            allowed = [32 * i + bit for i, word in enumerate(mask) if word for bit in range(32) if word >> bit & 1]
            if tokens.eos_ids.intersection(allowed):
                found = read(prepared, text.decode())
                assert found
                for _, arguments in found:
                    jsonschema.validate(arguments, SCHEMA)
                num_read += len(found)
                break
            closing = [each for each in allowed if tokens.token_bytes(each) in (b'"', b"]", b"}") or each > 300]
            token = rng.choice(closing or allowed)
            assert constraint.accept([token]) == 1
            text += tokens.token_bytes(token) or tokens.token_text(token).encode()
    assert num_read >= 4


@pytest.mark.parametrize("name", NOTED)
def test_a_schema_without_names_takes_any_arguments(name: str) -> None:
    text = FORMATS[name].written([("f", '{"x": {"y": 1}}')])
    assert accepts(asked(name, tools=[tool("f", parameters={"additionalProperties": True})]), text)
    assert not accepts(asked(name, tools=[tool("f", parameters={})]), text)
    assert accepts(asked(name, tools=[tool("f", parameters={})]), FORMATS[name].written([("f", "{}")]))


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"minProperties": 1}, "/minProperties"),
        ({"required": ["other"]}, "/required"),
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "/properties/a/pattern"),
        ({"properties": {"a": {"oneOf": [{}]}}}, "/properties/a/oneOf"),
        ({"properties": {"a": {"type": "array", "items": {"not": {}}}}}, "/properties/a/items/not"),
        ({"properties": {"a": {"enum": ["x"], "maxLength": 2}}}, "/properties/a/maxLength"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "/properties/a/$ref"),
        ({"properties": {"a": {"type": "integer", "multipleOf": 0}}}, "/properties/a"),
        ({"properties": {"a": {"type": "string", "minLength": 2, "maxLength": 1}}}, "/properties/a/maxLength"),
        ({"properties": {"a b": {}}}, "/properties/a b"),
        ({"additionalProperties": {"type": "null"}}, "/additionalProperties"),
        ({"properties": {"a": {"const": {"a b": 1}}}}, "/properties/a/const"),
        ({"properties": {"a": False}}, "/properties/a"),
        ({"properties": {"a": {"type": "string", "maxlength": 2}}}, "/properties/a/maxlength"),
    ],
)
def test_schemas_that_a_notation_cannot_hold_are_refused(schema: dict[str, Any], pointer: str) -> None:
    with pytest.raises(RequestError) as raised:
        asked("functiongemma", tools=[tool("f", parameters=schema, strict=True)], tool_choice="auto")
    assert (raised.value.code, raised.value.param) == ("invalid_schema", "tools[0].function.parameters")
    assert raised.value.message.startswith(f"tools[0].function.parameters{pointer}: ")


HARMONY_CALL = FORMATS["harmony"].written([("deep", '{"n": 1}')])
THOUGHT = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"
NOTE = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize("marks", [(), MARKS["harmony"]])
def test_answers_of_several_messages(marks: tuple[str, ...]) -> None:
    required = asked("harmony", marks=marks)
    auto = asked("harmony", marks=marks, tool_choice="auto", parallel_tool_calls=False)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
    formatted = asked("harmony", marks=marks, tool_choice="auto", response_format=schema)
    for text, allowed in (
        (HARMONY_CALL, (True, True, True)),
        (THOUGHT * 2 + HARMONY_CALL, (True, True, True)),
        (THOUGHT + NOTE + HARMONY_CALL, (False, True, False)),
        (THOUGHT + FINAL + "true", (False, True, True)),
        (FINAL + "text", (False, True, False)),
        (THOUGHT, (False, False, False)),
        ("text", (False, False, False)),
    ):
        assert tuple(accepts(each, text, marks=marks) for each in (required, auto, formatted)) == allowed, text
    assert read(required, THOUGHT + HARMONY_CALL) == [("deep", {"n": 1})]
