"""The grammars of answers that call tools: each text that they allow is read as calls that match their schemas."""

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
from mistralrs.grammar.compile_grammar import CompiledGrammar, compile_grammar
from mistralrs.grammar.constraint import GrammarConstraint
from mistralrs.grammar.token_table import TokenTable
from mistralrs.text.response.call_format import FORMATS, CallFormat, call_format_of, is_read
from mistralrs.text.response.response_parser import ResponseParser
from mistralrs.text.response.shipped_templates import SHIPPED, shipped_template
from mistralrs.text.tokenizer import Tokenizer
from tests.api.served import byte_tokenizer
from tests.api.tooling import CITY, FORM, TOOLS, ask, call, calling, marking_tokenizer, tool

NUMBERS = {
    "type": "object",
    "properties": {"n": {"enum": [1, 23]}, "on": {"type": "boolean"}},
    "required": ["n"],
    "additionalProperties": False,
}
BOTH = [TOOLS[0], tool("sum", parameters=NUMBERS)]
LIST = CallFormat(
    prefix="[TOOL_CALLS][",
    call='{"name": "$name", "arguments": $arguments}',
    separator=", ",
    suffix="]",
    trigger="[TOOL_CALLS]",
)
BARE = CallFormat(call='{"name": "$name", "parameters": $arguments}', separator="; ")
SUM = '{"name": "sum", "arguments": {"n": 1}}'


@cache
def table(marks: bool) -> TokenTable:
    return TokenTable(marking_tokenizer() if marks else byte_tokenizer())


def grammar(prepared: Prepared, *, marks: bool) -> CompiledGrammar:
    held = prepared.requests[0].grammar
    assert held is not None
    return compile_grammar(held.kind, held.text, table(marks), timeout_s=60)


def asked(*, marks: bool = False, form: CallFormat | None = None, **fields: Any) -> Prepared:
    model = calling(marks=marks) if form is None else calling(marks=marks, form=form)
    return ask(model, **{"tools": BOTH, **fields})


def accepts(prepared: Prepared, text: str, *, marks: bool = False) -> bool:
    """Whether the answer may be this text, with its marks as the tokens that they are."""
    tokens = table(marks)
    constraint = grammar(prepared, marks=marks).constraint()
    ids = (marking_tokenizer() if marks else byte_tokenizer()).encode(text, special=True)
    if constraint.accept(ids) < len(ids):
        return False
    mask = array("I", [0]) * tokens.mask_words
    constraint.mask(mask)
    return constraint.is_accepting


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize(
    ("fields", "text", "is_accepted"),
    [
        ({"tool_choice": "required"}, call("weather", city="Zürich"), True),
        ({"tool_choice": "required"}, call("weather", city="a") + "\n" + call("sum", n=23, on=True), True),
        ({"tool_choice": "required"}, "Hello", False),
        ({"tool_choice": "required"}, "", False),
        ({"tool_choice": "required"}, call("other", city="a"), False),
        ({"tool_choice": "required"}, call("sum", n=2), False),
        ({"tool_choice": "required"}, call("weather"), False),
        ({"tool_choice": "required"}, call("sum", n=1) + " and more", False),
        ({"tool_choice": "required"}, "<think>I think</think>\n\n" + call("sum", n=1), True),
        ({"tool_choice": "required"}, "<think>I think</think>no", False),
        ({"tool_choice": {"type": "function", "function": {"name": "sum"}}}, call("sum", n=1), True),
        ({"tool_choice": {"type": "function", "function": {"name": "sum"}}}, call("weather", city="a"), False),
        (
            {"tool_choice": {"type": "function", "function": {"name": "sum"}}},
            call("sum", n=1) + "\n" + call("sum", n=1),
            False,
        ),
        ({"parallel_tool_calls": False}, "text", True),
        ({"parallel_tool_calls": False}, "", True),
        ({"parallel_tool_calls": False}, "I look: " + call("sum", n=5, z=[1]), True),
        ({"parallel_tool_calls": False}, call("sum", n=1) + "\n" + call("sum", n=1), False),
        ({"parallel_tool_calls": False, "tool_choice": "required"}, call("sum", n=1) + "\n" + call("sum", n=1), False),
        ({"tools": [{**BOTH[1], "function": {**BOTH[1]["function"], "strict": True}}, BOTH[0]]}, "text", True),
        (
            {"tools": [{**BOTH[1], "function": {**BOTH[1]["function"], "strict": True}}, BOTH[0]]},
            "a " + call("sum", n=1) + "b " + call("weather", any="thing") + " c",
            True,
        ),
        (
            {"tools": [{**BOTH[1], "function": {**BOTH[1]["function"], "strict": True}}, BOTH[0]]},
            "a " + call("sum", n=2),
            False,
        ),
        ({"functions": [BOTH[1]["function"]], "tools": None}, "x" + call("sum", n=1), True),
        ({"functions": [BOTH[1]["function"]], "tools": None}, call("sum", n=1) * 2, False),
    ],
)
def test_answers_that_a_choice_allows(fields: dict[str, Any], text: str, is_accepted: bool, marks: bool) -> None:
    assert accepts(asked(marks=marks, **fields), text, marks=marks) is is_accepted


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_thinking_that_the_prompt_began_is_ended_first(choice: str, marks: bool) -> None:
    fields = {"tool_choice": choice, "parallel_tool_calls": False, "chat_template_kwargs": {"enable_thinking": True}}
    prepared = asked(marks=marks, **fields)
    assert accepts(prepared, "Hm</think>" + call("sum", n=1), marks=marks)
    assert not accepts(prepared, "Hm", marks=marks)
    assert accepts(prepared, "Hm</think>no", marks=marks) is (choice == "auto")


@pytest.mark.parametrize(
    ("form", "fields", "text", "is_accepted"),
    [
        (LIST, {"tool_choice": "required"}, f"[TOOL_CALLS][{SUM}]", True),
        (LIST, {"tool_choice": "required"}, f"[TOOL_CALLS][{SUM}, {SUM}]", True),
        (LIST, {"tool_choice": "required"}, f"[TOOL_CALLS][{SUM}", False),
        (LIST, {"tool_choice": "required"}, SUM, False),
        (LIST, {"parallel_tool_calls": False}, f"text [TOOL_CALLS][{SUM}]", True),
        (LIST, {"parallel_tool_calls": False}, f"[TOOL_CALLS][{SUM}, {SUM}]", False),
        (LIST, {"parallel_tool_calls": False}, "any [TOOL text", True),
        (BARE, {"tool_choice": "required"}, SUM.replace("arguments", "parameters"), True),
        (BARE, {"tool_choice": "required"}, "text", False),
        (BARE, {"parallel_tool_calls": False}, "text {", True),
        (BARE, {"parallel_tool_calls": False}, "", True),
        (BARE, {"parallel_tool_calls": False}, SUM.replace("arguments", "parameters"), True),
        (BARE, {"parallel_tool_calls": False}, "{ text", False),
    ],
)
def test_forms_of_other_models(form: CallFormat, fields: dict[str, Any], text: str, is_accepted: bool) -> None:
    assert accepts(asked(form=form, **fields), text) is is_accepted


def walk(constraint: GrammarConstraint, tokenizer: Tokenizer, rng: random.Random, *, marks: bool) -> str | None:
    """Returns an answer of random allowed tokens; None if it did not end."""
    text = b""
    for _ in range(400):
        mask = array("I", [0]) * table(marks).mask_words
        constraint.mask(mask)
        allowed = [32 * i + bit for i, word in enumerate(mask) if word for bit in range(32) if word >> bit & 1]
        ends = [token for token in allowed if token in tokenizer.eos_ids]
        if ends:
            return text.decode()
        token = rng.choice([each for each in allowed if not tokenizer.token_bytes(each).isspace()] or allowed)
        assert constraint.accept([token]) == 1
        text += tokenizer.token_bytes(token) or tokenizer.token_text(token).encode()
    return None


@pytest.mark.parametrize("marks", [False, True])
def test_random_answers_are_read_as_calls_that_match(marks: bool) -> None:
    rng = random.Random(7)
    tools = [tool("sum", parameters=NUMBERS), tool("flag", parameters={**NUMBERS, "required": ["on"]})]
    prepared = asked(marks=marks, tools=tools, tool_choice="required")
    compiled = grammar(prepared, marks=marks)
    tokenizer = marking_tokenizer() if marks else byte_tokenizer()
    schemas = {each["function"]["name"]: each["function"]["parameters"] for each in tools}
    num_read = 0
    for _ in range(25):
        text = walk(compiled.constraint(), tokenizer, rng, marks=marks)
        if text is None:
            continue
        assert prepared.parts is not None
        parts = ChoiceParts(0, prepared.parts.parser())
        parts.push(Delta(text, (1,), ()))
        parts.finish()
        assert parts.calls
        for each in parts.calls:
            jsonschema.validate(json.loads(each.arguments), schemas[each.name])
            num_read += 1
    assert num_read >= 5


def test_a_tool_without_parameters_takes_no_arguments() -> None:
    none = [{"type": "function", "function": {"name": "f"}}]
    assert accepts(asked(tools=none, tool_choice="required"), call("f"))
    assert not accepts(asked(tools=none, tool_choice="required"), call("f", a=1))
    assert CITY["type"] == "object"


@pytest.mark.parametrize("name", FORMATS)
def test_the_forms_of_shipped_templates(name: str) -> None:
    """A grammar allows calls in the form that the response template reads, and they are read as they were meant."""
    form, template = FORMATS[name], shipped_template(name)
    assert is_read(form, template)
    assert not is_read(form, shipped_template("think"))
    calls = [("weather", '{"city": "Zürich"}'), ("sum", '{"n": 23, "on": true}')]
    required = asked(form=form, tool_choice="required")
    assert accepts(required, form.written(calls)) is form.repeats
    assert accepts(required, form.written(calls[:1]))
    assert not accepts(required, "text")
    one = asked(form=form, parallel_tool_calls=False)
    assert accepts(one, form.written(calls[:1]))
    assert not accepts(one, form.written(calls))
    assert accepts(one, form.text_open + "text")


def test_every_shipped_template_with_calls_has_a_form() -> None:
    assert {each.name for each in SHIPPED if shipped_template(each.name).has_tool_calls} == FORMATS.keys()


def test_a_form_is_known_by_the_chat_templates_markers() -> None:
    assert call_format_of("<think> ... <tool_call> ...", shipped_template("hermes")) is FORMATS["hermes"]
    without = call_format_of("... <tool_call> ...", shipped_template("hermes"))
    assert without == replace(FORMATS["hermes"], think_open="", think_close="")
    assert call_format_of("... <tool_call> ...", shipped_template("phi-4")) is None
    assert call_format_of("... <tool_call> ...", None) is None
    assert call_format_of("<function=a><parameter=b>", shipped_template("olmo-3")) is None
    assert call_format_of("<|im_start|><function_calls></think>", shipped_template("olmo-3")) is FORMATS["olmo-3"]
    assert call_format_of("<|start|><|channel|><|message|>", shipped_template("harmony")) is FORMATS["harmony"]
    assert call_format_of("nothing", shipped_template("hermes")) is None


FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": NUMBERS}}


@pytest.mark.parametrize("marks", [False, True])
def test_a_schema_for_the_content_leaves_calls_as_they_are(marks: bool) -> None:
    prepared = asked(marks=marks, response_format=FORMAT)
    assert accepts(prepared, '{"n": 1}', marks=marks)
    assert accepts(prepared, '<think>hm</think>{"n": 1}', marks=marks)
    assert accepts(prepared, call("sum", any="thing"), marks=marks)
    assert not accepts(prepared, '{"n": 2}', marks=marks)
    assert not accepts(prepared, "text", marks=marks)
    assert not accepts(prepared, '{"n": 1}' + call("sum", n=1), marks=marks)
    assert accepts(asked(marks=marks, response_format={"type": "json_object"}), '{"any": "thing"}', marks=marks)


def test_grammars_that_leave_no_place_for_calls_are_refused_by_name() -> None:
    for fields, param in (
        ({"response_format": FORMAT, "tool_choice": "required"}, "tool_choice"),
        ({"grammar": {"type": "regex", "value": "a*"}}, "tools"),
        ({"response_format": FORMAT, "form": None}, "tools"),
    ):
        model = calling(form=fields.pop("form", FORM))  # type: ignore[arg-type]
        with pytest.raises(RequestError) as raised:
            ask(model, tools=BOTH, **fields)
        assert raised.value.param == param


def test_an_answer_that_matches_a_grammar_is_content_alone() -> None:
    """The prompt may have begun the thinking all the same. Only a schema holds for what follows the thinking."""
    prepared = ask(guided_regex="[ab]+", chat_template_kwargs={"enable_thinking": True})
    assert prepared.parts is None
    assert prepared.requests[0].spelled_tokens == frozenset()


CODER = FORMATS["qwen3-coder"]
SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "words"},
        "unit": {"enum": ["C", "F"]},
        "count": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "boolean"}},
    },
    "required": ["query", "unit"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "is_accepted"),
    [
        ({"query": 'a <b> "c"\nd', "unit": "C"}, True),
        ({"query": "x", "unit": "F", "count": 12, "tags": [True, False]}, True),
        ({"query": "a", "unit": "K"}, False),
        ({"query": "a"}, False),
        ({"query": "a", "unit": "C", "count": "many"}, False),
        ({"query": "a", "unit": "C", "tags": ["x"]}, False),
        ({"query": "a", "unit": "C", "other": 1}, False),
    ],
)
def test_arguments_that_are_written_one_by_one(arguments: dict[str, Any], is_accepted: bool) -> None:
    tools = [tool("search", parameters=SEARCH)]
    text = CODER.written([("search", json.dumps(arguments))])
    assert accepts(asked(form=CODER, tools=tools, tool_choice="required"), text) is is_accepted
    assert accepts(asked(form=CODER, tools=tools, parallel_tool_calls=False), "I look. " + text)
    if is_accepted:
        parts = ChoiceParts(0, ResponseParser(shipped_template("qwen3-coder"), tools=tools))
        parts.push(Delta(text, (1,), ()))
        parts.finish()
        assert [json.loads(each.arguments) for each in parts.calls] == [arguments]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"minProperties": 1}, "/minProperties"),
        ({"required": ["other"]}, "/required"),
        ({"properties": {"query": {"type": "string", "maxLength": 3}}, "required": []}, "/properties/query"),
        ({"properties": {"query": {}}, "required": []}, "/properties/query"),
        ({"properties": {"n": {"type": "array", "uniqueItems": True}}, "required": []}, "/properties/n"),
        ({"properties": {"a>b": {"type": "string"}}, "required": []}, "/properties/a>b"),
        ({"properties": {"a": {"enum": ["x\n</parameter>\n"]}}, "required": []}, "/properties/a/enum"),
    ],
)
def test_schemas_that_this_form_cannot_hold_are_refused(changes: dict[str, Any], pointer: str) -> None:
    with pytest.raises(RequestError) as raised:
        asked(form=CODER, tools=[tool("search", parameters={**SEARCH, **changes}, strict=True)])
    assert (raised.value.code, raised.value.param) == ("invalid_schema", "tools[0].function.parameters")
    assert raised.value.message.startswith(f"tools[0].function.parameters{pointer}: ")
