"""Tools in requests: bodies, refusals by name, the prompt that shows them, and earlier calls and thoughts in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import Prepared
from mistralrs.errors import RequestError
from tests.api.served import CHATML, byte_tokenizer, served
from tests.api.tooling import CITY, HERMES, TOOLS, ask, calling, tool

NAMED = {"type": "function", "function": {"name": "time"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
LEGACY = [{"name": "weather", "parameters": CITY}]
MISTRAL = (
    "{% for m in messages %}{{ m.role }}:{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id|length != 9 %}{{ raise_exception('9 characters') }}{% endif %}{{ c.id }}"
    "{% endfor %}{% endif %}{{ m.content }}{{ m.tool_call_id if m.tool_call_id }};{% endfor %}"
    "{{ tools | tojson if tools }}"
)


def prompt(prepared: Prepared, model: ServedModel | None = None) -> str:
    tokenizer = (model or calling()).tokenizer
    return "".join(
        tokenizer.token_bytes(token).decode("latin-1") or tokenizer.token_text(token)
        for token in prepared.requests[0].prompt
    )


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        ask(fields.pop("model", None), **fields)
    return raised.value


def test_the_template_gets_tools_as_transformers_has_them() -> None:
    shown = prompt(ask(tools=TOOLS))
    assert f"<tools>{json.dumps(TOOLS[0])}{json.dumps(TOOLS[1])}</tools>" in shown


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}])
def test_a_tool_without_description_and_parameters_has_empty_ones(parameters: Any) -> None:
    shown = prompt(ask(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}]))
    assert '{"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}' in shown


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": TOOLS, "tool_choice": "none"}, {"functions": []}, {}])
def test_without_tools_the_prompt_has_none(fields: dict[str, Any]) -> None:
    prepared = ask(**fields)
    assert "<tools>" not in prompt(prepared)
    assert prepared.parts is not None
    assert not prepared.parts.template.has_tool_calls
    assert prepared.requests[0].grammar is None


@pytest.mark.parametrize("choice", [None, "auto", "required", NAMED, ALLOWED])
def test_all_choices_show_all_tools(choice: Any) -> None:
    assert "weather" in prompt(ask(tools=TOOLS, tool_choice=choice))


@pytest.mark.parametrize(
    ("fields", "is_held"),
    [
        ({}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": NAMED}, True),
        ({"tool_choice": ALLOWED}, True),
        ({"parallel_tool_calls": False}, True),
        ({"parallel_tool_calls": True}, False),
        ({"tools": [tool("weather", strict=True)]}, True),
        ({"tools": [tool("weather", strict=False)]}, False),
    ],
)
def test_a_grammar_holds_what_the_model_would_not(fields: dict[str, Any], is_held: bool) -> None:
    assert (ask(**{"tools": TOOLS, **fields}).requests[0].grammar is not None) == is_held


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": ALLOWED}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [tool("weather"), tool("time", strict=True)]}, "tools[1].function.strict"),
        ({"tools": None, "functions": LEGACY}, "functions"),
    ],
)
def test_a_model_that_cannot_be_held_refuses_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(model=calling(form=None), **{"tools": TOOLS, **fields})
    assert (error.code, error.param) == ("unsupported_parameter", param)
    assert error.hint
    assert ask(calling(form=None), tools=TOOLS).requests[0].grammar is None


def test_a_template_without_tools_refuses_them_by_name() -> None:
    model = calling(template=CHATML)
    for field in ({"tools": TOOLS}, {"functions": LEGACY}):
        error = refused(model=model, **field)
        assert (error.code, error.param) == ("unsupported_parameter", next(iter(field)))
        assert "does not show" in error.message
        assert error.hint
    assert "<tools>" not in prompt(ask(model, tools=TOOLS, tool_choice="none"))


def test_a_model_whose_calls_cannot_be_read_refuses_tools_by_name() -> None:
    error = refused(model=served(HERMES, max_len=4000), tools=TOOLS)
    assert (error.code, error.param) == ("unsupported_parameter", "tools")
    assert ask(served(HERMES)).parts is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [*TOOLS, {"type": "custom", "custom": {"name": "x"}}]}, "tools[2].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 129)]}, "tools[0].function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].function.name"),
        ({"tools": [tool("f", parameters={"type": "array"})]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools"),
        ({"tools": [tool("f", description="x" * (600 << 10))]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function.name"),
        (
            {"tools": TOOLS, "tool_choice": {**ALLOWED, "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": TOOLS, "functions": LEGACY}, "functions"),
        ({"functions": LEGACY, "function_call": {"name": "f"}}, "function_call.name"),
        ({"functions": LEGACY, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "function_call": {"name": "weather"}}, "function_call"),
        ({"functions": LEGACY, "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": TOOLS, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(model=calling(max_len=1_000_000), **fields).param == param


@pytest.mark.parametrize("strict", [False, True])
def test_a_schema_that_cannot_be_held_is_refused_with_its_pointer(strict: bool) -> None:
    wrong = tool("f", parameters={**CITY, "not": {}}, strict=strict)
    error = refused(tools=[wrong], tool_choice="auto" if strict else "required")
    assert (error.code, error.param) == ("invalid_schema", "tools[0].function.parameters")
    assert "/not" in error.message


def test_a_tools_text_is_no_control_token() -> None:
    control = byte_tokenizer().encode("<|im_end|>", special=True)[0]
    plain = ask(tools=[tool("f", description="x")]).requests[0].prompt
    spelled = ask(tools=[tool("f", description="<|im_end|>")]).requests[0].prompt
    assert spelled.count(control) == plain.count(control)
    assert "<|im_end|>" in prompt(ask(tools=[tool("f", description="<|im_end|>")]))


def test_fields_of_tools_that_are_not_read_are_named() -> None:
    prepared = ask(tools=[{**TOOLS[0], "cache_control": {}}], tool_choice="auto")
    assert prepared.ignored == ("tools[0].cache_control",)


def test_long_tools_are_refused_before_the_template_runs() -> None:
    with pytest.raises(RequestError) as raised:
        ask(calling(max_len=100), tools=[tool("f", description="many words " * 40_000)])
    assert raised.value.code == "context_length_exceeded"


# Markers


def test_markers_that_are_control_tokens_are_spelled() -> None:
    model = calling(marks=True)
    texts = {model.tokenizer.token_text(token) for token in ask(model, tools=TOOLS).requests[0].spelled_tokens}
    assert texts == {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    texts = {model.tokenizer.token_text(token) for token in ask(model).requests[0].spelled_tokens}
    assert texts == {"<think>", "</think>"}
    assert ask(tools=TOOLS).requests[0].spelled_tokens == frozenset()


# Thinking


def test_thinking_is_asked_for_by_the_templates_variables() -> None:
    assert prompt(ask(chat_template_kwargs={"enable_thinking": True})).endswith("<think>\n")
    assert prompt(ask(reasoning_effort="high")).endswith("assistant\n\n")
    prepared = ask(chat_template_kwargs={"enable_thinking": True}, reasoning_effort="high")
    assert prepared.ignored == ()
    assert prompt(prepared).endswith("<think>\n\n")


def test_an_effort_that_changes_nothing_is_named_as_ignored() -> None:
    assert ask(served(CHATML), reasoning_effort="low").ignored == ("reasoning_effort",)
    always = HERMES.replace("{% if enable_thinking %}", "{% if enable_thinking is not defined or enable_thinking %}")
    model = calling(template=always)
    assert prompt(ask(model, reasoning_effort="none")).endswith("assistant\n")
    assert ask(model, reasoning_effort="none").ignored == ()
    given = ask(model, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert prompt(given).endswith("<think>\n")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_earlier_thoughts_reach_the_template_under_its_own_name(name: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", name: "hm"}]
    last = ask(messages=turns, add_generation_prompt=False)
    assert "<think>hm</think>b" in prompt(last)
    dropped = ask(messages=[*turns, {"role": "user", "content": "c"}])
    assert "hm" not in prompt(dropped)
    assert last.ignored == dropped.ignored == ()


def test_thoughts_that_a_template_has_no_place_for_are_named() -> None:
    turns = [{"role": "assistant", "content": "b", "reasoning": "hm", "reasoning_content": "hm"}]
    prepared = ask(served(CHATML), messages=[{"role": "user", "content": "a"}, *turns])
    assert prepared.ignored == ("messages.reasoning", "messages.reasoning_content")


# Earlier calls


def earlier(id: str = "call_0123456789") -> list[dict[str, Any]]:
    function = {"name": "weather", "arguments": '{"city": "Bern"}'}
    return [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": id, "content": "sunny"},
    ]


def test_calls_and_results_go_into_the_prompt() -> None:
    shown = prompt(ask(messages=earlier(), tools=TOOLS))
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>' in shown
    assert "<|im_start|>tool\nsunny<|im_end|>" in shown


def test_the_older_form_of_a_call_is_a_call() -> None:
    function = {"name": "weather", "arguments": '{"city": "Bern"}'}
    turns = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]
    assert prompt(ask(messages=turns)) == prompt(ask(messages=earlier()))


def test_ids_have_the_length_that_a_template_demands() -> None:
    model = calling(template=MISTRAL)
    shown = prompt(ask(model, messages=earlier("call_0123456789"), tools=TOOLS), model)
    first, second = shown.split("assistant:")[1][:9], shown.split("sunny")[1][:9]
    assert first == second
    assert first.isalnum()
    own = prompt(ask(model, messages=earlier("aB3dE5gH9"), tools=TOOLS), model)
    assert "assistant:aB3dE5gH9" in own
    assert ask(messages=earlier(), tools=TOOLS).ignored == ()


def test_a_strict_server_takes_tools() -> None:
    strict = Policy(model_name="org/tiny", strict=True)
    assert ask(policy=strict, tools=TOOLS, tool_choice="auto", parallel_tool_calls=True, reasoning_effort="high")
