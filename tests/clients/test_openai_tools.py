"""The `openai` package's tools: parsed, streamed, answered, in chats and in responses.

The model is small: tool choices and schemas make it call, and the tests say nothing of its reasons.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

openai = pytest.importorskip("openai", reason="openai is not installed; make clients installs it")

from openai import OpenAI  # noqa: E402

from tests.serving import RunningServer  # noqa: E402


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: Literal["Paris", "Oslo"]
    days: int = Field(ge=1, le=9)


class Clock(BaseModel):
    """Tells the time."""

    zone: Literal["UTC", "CET"]


TOOLS = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Clock)]
CLASSES: dict[str, type[BaseModel]] = {"Weather": Weather, "Clock": Clock}
MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
NAMED = {"type": "function", "function": {"name": "Clock"}}
ASKED: dict[str, Any] = {
    "model": "default", "messages": MESSAGES, "tools": TOOLS, "temperature": 0, "max_tokens": 400,
    "parallel_tool_calls": False,
}  # fmt: skip


@pytest.fixture
def client(tool_server: RunningServer) -> Iterator[Any]:
    with OpenAI(base_url=tool_server.base_url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.parametrize("choice", ["required", NAMED], ids=str)
def test_parsed_calls_streamed_and_not(client: Any, choice: Any) -> None:
    [whole] = client.chat.completions.parse(**ASKED, tool_choice=choice).choices
    [call] = whole.message.tool_calls
    assert isinstance(call.function.parsed_arguments, CLASSES[call.function.name])
    assert choice == "required" or call.function.name == "Clock"

    with client.chat.completions.stream(**ASKED, tool_choice=choice) as stream:
        kinds = [event.type for event in stream]
        [final] = stream.get_final_completion().choices
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= set(kinds)
    [streamed] = final.message.tool_calls
    assert streamed.function.parsed_arguments == call.function.parsed_arguments
    assert streamed.function.arguments == call.function.arguments
    assert final.finish_reason == whole.finish_reason == "tool_calls"
    assert not final.message.content
    assert whole.message.content is None


def test_a_result_is_answered(client: Any) -> None:
    """As tool runners do: the answer's message and the result go back until there is an answer without calls."""
    called = client.chat.completions.create(**ASKED, tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": each.id, "content": "Snow."} for each in called.tool_calls]
    again = {**ASKED, "messages": [*MESSAGES, called, *results], "tool_choice": "none", "max_tokens": 40}
    answer = client.chat.completions.create(**again)
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None
    unknown = {**again, "messages": [*MESSAGES, called, *results, *results]}
    assert client.chat.completions.create(**again).usage.prompt_tokens < (
        client.chat.completions.create(**unknown).usage.prompt_tokens
    )


def test_several_calls(client: Any) -> None:
    asked = {**ASKED, "tool_choice": "required", "parallel_tool_calls": True}
    whole = client.chat.completions.create(**asked).choices[0]
    pieces: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            pieces.setdefault(call.index, []).append(call.function.arguments or "")
    assert ["".join(each) for each in pieces.values()] == [each.function.arguments for each in whole.message.tool_calls]


def test_auto_and_none(client: Any) -> None:
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(**{**ASKED, "max_tokens": 20}, tool_choice=choice).choices[0]
        assert answer.finish_reason in ("stop", "length", "tool_calls")
        assert choice == "auto" or answer.message.tool_calls is None


def test_a_cut_call(client: Any) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**ASKED, "max_tokens": 12}, tool_choice="required")


def test_the_older_functions(client: Any) -> None:
    functions = [{"name": "Clock", "parameters": TOOLS[1]["function"]["parameters"]}]
    answer = client.chat.completions.create(
        model="default",
        messages=MESSAGES,
        functions=functions,
        function_call={"name": "Clock"},
        temperature=0,
        max_tokens=100,
    )
    assert Clock.model_validate_json(answer.choices[0].message.function_call.arguments)


def test_responses(client: Any) -> None:
    tools = [openai.pydantic_function_tool(Weather)["function"] | {"type": "function"}]
    asked = {"model": "default", "tools": tools, "tool_choice": "required", "temperature": 0, "max_output_tokens": 400}
    asked["parallel_tool_calls"] = False
    first = client.responses.create(**asked, input=MESSAGES)
    [call] = [item for item in first.output if item.type == "function_call"]
    assert Weather.model_validate_json(call.arguments)
    with client.responses.stream(**asked, input=MESSAGES) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == call.arguments
    assert [item.arguments for item in final.output if item.type == "function_call"] == [call.arguments]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps({"sky": "blue"})}
    answer = client.responses.create(
        **{**asked, "tool_choice": "none", "max_output_tokens": 40}, input=[*MESSAGES, *first.output, result]
    )
    assert answer.output_text


def test_a_schema_that_cannot_be_held_to_is_refused(client: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**ASKED, "tools": [tool]}, tool_choice="required")
    assert refused.value.code == "invalid_schema"
    assert refused.value.param.startswith("tools[0].function.parameters")
