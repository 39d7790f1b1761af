"""Tools and thinking of a model in the Responses and the Messages API: streamed equals whole, in any split."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.api.schemas.output_chunk import OutputChunk
from mistralrs.api.schemas.request_bodies import parse
from mistralrs.api.schemas.translated.messages_bodies import MessagesAnswer, MessagesBody
from mistralrs.api.schemas.translated.responses_bodies import ResponsesAnswer, ResponsesBody
from mistralrs.api.serving.answers.respond import Answer
from mistralrs.api.serving.other_apis.messages_api import PreparedMessage, prepare_message
from mistralrs.api.serving.other_apis.messages_events import MessageEvents
from mistralrs.api.serving.other_apis.responses_api import PreparedResponse, prepare_response
from mistralrs.api.serving.other_apis.responses_events import ResponseEvents
from mistralrs.api.serving.prepare import Prepared
from mistralrs.engine.events import Event
from mistralrs.errors import RequestError
from tests.api.served import POLICY
from tests.api.test_messages_api import read
from tests.api.test_respond import Script
from tests.api.tooling import CITY, ask, call, calling, said, split_at

FUNCTION = {"type": "function", "name": "weather", "description": "d", "parameters": CITY}
TOOL = {"name": "weather", "description": "d", "input_schema": CITY}
TEXT = "<think>hm, ünd</think>Let me see. " + call("weather", city="Zürich") + "\n" + call("time", city="\u2028}")


def chunks(prepared: Prepared, events: Sequence[Event]) -> list[OutputChunk]:
    async def listen() -> list[OutputChunk]:
        answer = Answer(prepared, id="x", created=1, model_name="m")
        return [chunk async for chunk in answer.events(Script(events).streams)]

    return asyncio.run(listen())


def response(**fields: Any) -> PreparedResponse:
    given = {"input": "hi", "tools": [FUNCTION, {**FUNCTION, "name": "time"}], "seed": 5, **fields}
    return prepare_response(parse(ResponsesBody, json.dumps(given).encode()), calling(), POLICY)


def message(**fields: Any) -> PreparedMessage:
    turns = [{"role": "user", "content": "hi"}]
    given = {"messages": turns, "max_tokens": 99, "tools": [TOOL, {**TOOL, "name": "time"}], "seed": 5, **fields}
    return prepare_message(parse(MessagesBody, json.dumps(given).encode()), calling(), POLICY)


def made(builder: ResponseEvents | MessageEvents, chunks: Sequence[OutputChunk]) -> tuple[list[Any], dict[str, Any]]:
    """Returns the events of a stream, and the body that they make."""
    events = [*builder.opening()]
    for chunk in chunks:
        events += builder.on_chunk(chunk)
    events += builder.closing()
    return json.loads(json.dumps(events)), json.loads(json.dumps(builder.body()))


@settings(deadline=None)
@given(st.lists(st.integers(0, len(TEXT)), max_size=12))
def test_any_split_is_one_answer(cuts: list[int]) -> None:
    answer = said(*split_at(TEXT, cuts))
    asked = response()
    events, body = made(ResponseEvents(asked, id="r", created=1, model_name="m"), chunks(asked.prepared, answer))
    ResponsesAnswer.model_validate(body)
    kinds = [item["type"] for item in body["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    assert [item["name"] for item in body["output"][2:]] == ["weather", "time"]
    arguments = [json.loads(item["arguments"]) for item in body["output"][2:]]
    assert arguments == [{"city": "Zürich"}, {"city": "\u2028}"}]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == body["output"]

    wrote = message()
    events, body = made(MessageEvents(wrote, id="m", created=1, model_name="m"), chunks(wrote.prepared, answer))
    MessagesAnswer.model_validate(body)
    assert [block["type"] for block in body["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block["input"] for block in body["content"][2:]] == arguments
    assert body["stop_reason"] == "tool_use"
    assert read(events) == body


def test_choices_hold_the_model_as_those_of_chats_do() -> None:
    tool = {"type": "function", "function": {name: value for name, value in FUNCTION.items() if name != "type"}}
    tools = [tool, {**tool, "function": {**tool["function"], "name": "time"}}]  # type: ignore[dict-item]
    named = {"type": "function", "function": {"name": "weather"}}
    for chat, responses, messages in (
        (named, {"type": "function", "name": "weather"}, {"type": "tool", "name": "weather"}),
        ("required", "required", {"type": "any"}),
    ):
        expected = ask(tools=tools, tool_choice=chat).requests[0]
        assert expected.grammar is not None
        for prepared in (response(tool_choice=responses).prepared, message(tool_choice=messages).prepared):
            assert (prepared.requests[0].grammar, prepared.requests[0].prompt) == (expected.grammar, expected.prompt)
            assert prepared.ignored == ()


def test_errors_about_tools_name_the_bodys_own_fields() -> None:
    with pytest.raises(RequestError) as raised:
        response(tools=[{**FUNCTION, "name": "no name"}])
    assert raised.value.param == "tools[0].name"
    with pytest.raises(RequestError) as raised:
        message(tools=[{**TOOL, "name": "no name"}])
    assert raised.value.param == "tools[0].name"
