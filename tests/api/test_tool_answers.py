"""Answers with tool calls and thinking: shapes, order of chunks, sums, and that streamed is whole."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from typing import Any

import openai.types.chat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState

from mistralrs.api.schemas import response_bodies
from mistralrs.api.serving.answers.respond import Answer, AnswerError
from mistralrs.api.serving.prepare import Prepared
from mistralrs.engine.events import Delta, Event, Failed, Usage
from mistralrs.errors import EngineError
from tests.api.test_respond import Script, streamed_bodies, whole
from tests.api.tooling import TOOLS, ask, call, said, split_at, unnumbered

TWO = f"<think>Hm é</think>I look. {call('weather', city='Zürich')}\n{call('time', city='Bern', deep={'a': [1, {}]})}"
FIRST = '{"city": "Zürich"}'


def message(prepared: Prepared, *events: Event) -> dict[str, Any]:
    body = whole(prepared, list(events))
    response_bodies.ChatCompletion.model_validate(body)
    openai.types.chat.ChatCompletion.model_validate(body, strict=False)
    found: dict[str, Any] = body["choices"][0]["message"]
    return found


def added_up(prepared: Prepared, *choices: list[Event]) -> list[dict[str, Any]]:
    """Returns the choices' messages as a client of a stream adds them up, with the finish reasons."""
    found: list[dict[str, Any]] = [{"reasoning": "", "content": "", "tool_calls": []} for _ in choices]
    for body in streamed_bodies(prepared, *choices):
        response_bodies.ChatCompletionChunk.model_validate(body)
        for choice in body["choices"]:
            into, delta = found[choice["index"]], choice["delta"]
            into["content"] += delta.get("content") or ""
            into["reasoning"] += delta.get("reasoning") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for each in delta.get("tool_calls", []):
                if each["index"] == len(into["tool_calls"]):
                    assert each["type"] == "function"
                    into["tool_calls"].append({"id": each["id"], "name": each["function"]["name"], "arguments": ""})
                else:
                    assert set(each) == {"index", "function"}
                    assert set(each["function"]) == {"arguments"}
                into["tool_calls"][each["index"]]["arguments"] += each["function"]["arguments"]
            if choice["finish_reason"] is not None:
                into["finish_reason"] = choice["finish_reason"]
    return found


def flat(choice: dict[str, Any]) -> dict[str, Any]:
    """Returns a whole choice in the form of ``added_up``."""
    said = choice["message"]
    calls = [{"id": each["id"], **each["function"]} for each in said.get("tool_calls", [])]
    return {
        "reasoning": said.get("reasoning", ""),
        "content": said["content"] or "",
        "tool_calls": calls,
        "finish_reason": choice["finish_reason"],
    }


def without_ids(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [unnumbered(choice) for choice in choices]


def test_a_whole_answer_with_calls() -> None:
    body = whole(ask(tools=TOOLS), said(TWO))
    [choice] = body["choices"]
    ids = [each["id"] for each in choice["message"]["tool_calls"]]
    assert len({*ids}) == 2
    assert all(len(id) == 9 and id.isalnum() and id.isascii() for id in ids)
    assert choice["finish_reason"] == "tool_calls"
    assert {k: v for k, v in unnumbered(choice["message"]).items() if k != "content"} == {
        "role": "assistant",
        "refusal": None,
        "reasoning": "Hm é",
        "reasoning_content": "Hm é",
        "tool_calls": [
            {
                "id": "call0",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
            },
            {
                "id": "call1",
                "type": "function",
                "function": {"name": "time", "arguments": json.dumps({"city": "Bern", "deep": {"a": [1, {}]}})},
            },
        ],
    }
    assert choice["message"]["content"].strip() == "I look."


def test_content_is_null_beside_calls_only() -> None:
    assert message(ask(tools=TOOLS), *said(call("time", city="x")))["content"] is None
    assert message(ask(tools=TOOLS), *said(""))["content"] == ""
    thinking = message(ask(), *said("<think>a</think>"))
    assert (thinking["content"], thinking["reasoning"]) == ("", "a")
    assert "tool_calls" not in thinking
    assert "reasoning" not in message(ask(), *said("a"))


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_tools_a_call_is_text(fields: dict[str, Any]) -> None:
    """A client that speaks this form itself gets all of it."""
    text = call("time", city="x")
    assert message(ask(**fields), *said(*text)) == {"role": "assistant", "content": text, "refusal": None}


def test_chunks_are_in_the_order_that_clients_accept() -> None:
    bodies = streamed_bodies(ask(tools=TOOLS, stream=True), said("<think>", "a", "</think>", call("time", city="x")))
    deltas = [body["choices"][0]["delta"] for body in bodies]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {"reasoning": "a", "reasoning_content": "a"}
    [start] = deltas[2]["tool_calls"]
    assert start == {"index": 0, "id": start["id"], "type": "function", "function": {"name": "time", "arguments": ""}}
    assert all([*each] == ["tool_calls"] for each in deltas[3:-1])
    assert deltas[-1] == {}
    assert [body["choices"][0]["finish_reason"] for body in bodies] == [None] * (len(bodies) - 1) + ["tool_calls"]


def test_openais_client_adds_the_chunks_up() -> None:
    prepared = ask(tools=TOOLS, stream=True)
    state = ChatCompletionStreamState()
    for body in streamed_bodies(prepared, said(*TWO)):
        state.handle_chunk(openai.types.chat.ChatCompletionChunk.model_validate(body))
    [choice] = state.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls or []
    assert [(each.function.name, json.loads(each.function.arguments)) for each in calls] == [
        ("weather", {"city": "Zürich"}),
        ("time", {"city": "Bern", "deep": {"a": [1, {}]}}),
    ]


CHOICES: dict[str, dict[str, Any]] = {
    "auto": {"tools": TOOLS},
    "required": {"tools": TOOLS, "tool_choice": "required"},
    "two": {"n": 2},
    "begun": {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": True}},
}


@cache
def prepared_for(choice: str) -> Prepared:
    return ask(**CHOICES[choice])


@settings(deadline=None)
@given(
    text=st.sampled_from(
        [TWO, call("time", city="x"), "plain <b> text", "<think>a</think>b</tool_call> c", "<think>a", "<tool_cal"]
    ),
    cuts=st.lists(st.integers(0, len(TWO)), max_size=30),
    choice=st.sampled_from([*CHOICES]),
)
def test_streamed_is_whole_however_the_text_is_cut(text: str, cuts: list[int], choice: str) -> None:
    prepared = prepared_for(choice)
    pieces = said(*split_at(text, [cut for cut in cuts if cut < len(text)]))
    choices = [pieces] * prepared.generated
    body = whole(prepared, *choices)
    streamed = added_up(prepared, *choices)
    assert without_ids(streamed) == without_ids([flat(each) for each in body["choices"]])
    at_once = whole(prepared, *[said(text)] * len(choices))
    assert without_ids([flat(each) for each in at_once["choices"]]) == without_ids(
        [flat(each) for each in body["choices"]]
    )


def test_choices_have_calls_of_their_own() -> None:
    prepared = ask(tools=TOOLS, n=2)
    body = whole(prepared, said(call("time", city="a")), said("no"))
    assert [choice["finish_reason"] for choice in body["choices"]] == ["tool_calls", "stop"]
    assert body["choices"][1]["message"]["content"] == "no"


def test_an_answer_that_is_cut_says_length() -> None:
    body = whole(ask(tools=TOOLS), said(call("time", city="a"), "\n<tool_c", reason="length"))
    [choice] = body["choices"]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["tool_calls"]) == 1


def test_thinking_that_the_prompt_began() -> None:
    prepared = ask(tools=TOOLS, chat_template_kwargs={"enable_thinking": True})
    found = message(prepared, *said("Hm", "</think>", "yes"))
    assert (found["reasoning"], found["content"]) == ("Hm", "yes")


def test_tokens_of_thinking_are_counted() -> None:
    body = whole(ask(), said("<think>", "a", "b", "</think>", "c"))
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert body["usage"]["completion_tokens"] == 6
    body = whole(ask(n=2), said("<think>", "a", "</think>"), said("c"))
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_logprobs_hold_every_token_that_was_drawn() -> None:
    """Those of thinking, calls and marks are among them, in the order of drawing, streamed and not."""
    prepared = ask(tools=TOOLS, logprobs=True)
    events = said("<think>", "a", "</think>", "b", *split_at(call("time", city="x"), [3, 20]), logprobs=True)
    tokens = [event.text for event in events if isinstance(event, Delta)]
    [choice] = whole(prepared, events)["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == tokens
    streamed = [
        entry["token"]
        for body in streamed_bodies(ask(tools=TOOLS, logprobs=True, stream=True), events)
        for entry in (body["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == tokens


def test_timings_of_a_stream_come_with_every_addition() -> None:
    bodies = streamed_bodies(ask(tools=TOOLS, stream=True, timings_per_token=True), said(TWO))
    assert all("timings" in body for body in bodies[1:])


LEGACY = [TOOLS[1]["function"]]


def test_functions_are_answered_in_their_own_form() -> None:
    prepared = ask(functions=LEGACY)
    [choice] = whole(prepared, said(call("time", city="x")))["choices"]
    arguments = json.dumps({"city": "x"})
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "time", "arguments": arguments},
    }
    response_bodies.ChatChoice.model_validate(choice)
    bodies = streamed_bodies(ask(functions=LEGACY, stream=True), said(call("time", city="x")))
    deltas = [body["choices"][0]["delta"] for body in bodies]
    assert deltas[1] == {"function_call": {"name": "time", "arguments": ""}}
    assert "".join(delta["function_call"]["arguments"] for delta in deltas[1:-1]) == arguments
    assert bodies[-1]["choices"][0]["finish_reason"] == "function_call"


def test_an_error_in_the_middle_shows_what_there_was() -> None:
    prepared = ask(tools=TOOLS)
    failed = Failed(EngineError("the model failed"), Usage(4, 0, 1, 0.5, 2.0, 0.5, 5))
    script = Script([Delta("<think>a</think>" + call("time", city="x"), (1,), ()), failed])
    answer = Answer(prepared, id="chatcmpl-1", created=1, model_name="org/tiny")
    with pytest.raises(AnswerError) as raised:
        asyncio.run(answer.whole(script.streams))
    choices = raised.value.partial["choices"]
    assert isinstance(choices, list)
    assert choices[0]["finish_reason"] == "error"
    assert choices[0]["message"]["reasoning"] == "a"
    assert choices[0]["message"]["tool_calls"][0]["function"]["name"] == "time"


def test_the_beginning_of_a_call_is_no_thinking() -> None:
    """It gives no text for a while; the mark that ends the thought is counted with it."""
    prepared = ask(tools=TOOLS)
    events = said("<think>", "Hm", "</think>", *call("time", city="Bern"))
    found = whole(prepared, events)["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert found == 2


@pytest.mark.parametrize("size", range(1, 9))
def test_tokens_of_thinking_do_not_depend_on_steps(size: int) -> None:
    """Draft tokens and forced ones come several in a step, and an answer that is read late in larger pieces still."""
    *deltas, end = said("<think>", "Hm", "", "m</thi", "nk>", "a", "<think>", "b</think>c", "d")
    held = Delta("e", (), ())  # text that came with the end
    news = [event for event in (*deltas, held) if isinstance(event, Delta)]
    steps = [Delta.joined(news[start : start + size]) for start in range(0, len(news), size)]
    body = whole(ask(), [Delta.joined(steps[:2]), *steps[2:], end])
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
    assert body["choices"][0]["message"]["content"] == "a\ncde"
    streamed = streamed_bodies(ask(stream=True, stream_options={"include_usage": True}), [*steps, end])
    assert streamed[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
