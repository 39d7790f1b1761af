"""Tool calls and thinking over HTTP: what the engine is asked, and what clients read, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from mistralrs.api.schemas import response_bodies
from mistralrs.engine.config import Request
from mistralrs.engine.events import Delta, Event, Failed, Finished
from mistralrs.errors import EngineError
from mistralrs.text.response.call_format import FORMATS
from mistralrs.text.response.shipped_templates import shipped_template
from tests.api.tooling import TOOLS, call, calling
from tests.server.fake import FakeEngine, Script, usage
from tests.server.harness import Served, events, fault, until

pytestmark = pytest.mark.anyio

CHOICES: list[Any] = ["none", "auto", "required", {"type": "function", "function": {"name": "time"}}]
ANSWERS = {
    "calls": f"<think>Hm</think>I look.{call('weather', city='Zürich')}\n{call('time', city='Bern')}",
    "text": "Hello <b>",
    "thinking": "<think>Hm</think>Hello",
}


def saying(text: str) -> Script:
    """Says a text in pieces of three characters."""

    def script(request: Request) -> Iterable[Event | float]:
        for start in range(0, len(text), 3):
            yield Delta(text[start : start + 3], (start,), ())
        yield Finished("stop", usage(request))

    return script


async def said_by(server: Served, **fields: Any) -> dict[str, Any]:
    """Returns the message and finish reason of a whole answer, in the form of ``streamed``."""
    response = await server.chat(**fields)
    assert response.status_code == 200
    response_bodies.ChatCompletion.model_validate(response.json())
    [choice] = response.json()["choices"]
    message = choice["message"]
    calls = [each["function"] for each in message.get("tool_calls", [])]
    end = choice["finish_reason"]
    return {"content": message["content"] or "", "reasoning": message.get("reasoning", ""), "calls": calls, "end": end}


async def streamed(server: Served, **fields: Any) -> dict[str, Any]:
    response = await server.chat(stream=True, **fields)
    *chunks, last = events(response)
    assert last == "[DONE]"
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "end": None}
    for chunk in chunks:
        response_bodies.ChatCompletionChunk.model_validate(chunk)
        [choice] = chunk["choices"]
        found["content"] += choice["delta"].get("content") or ""
        found["reasoning"] += choice["delta"].get("reasoning_content") or ""
        for each in choice["delta"].get("tool_calls", []):
            if "id" in each:
                found["calls"].append({"name": each["function"]["name"], "arguments": ""})
            found["calls"][each["index"]]["arguments"] += each["function"]["arguments"]
        found["end"] = choice["finish_reason"] or found["end"]
    return found


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("marks", [False, True])
async def test_whole_and_streamed_answers_say_the_same(choice: Any, answer: str, marks: bool) -> None:
    server = Served(FakeEngine(calling(marks=marks), saying(ANSWERS[answer])))
    whole = await said_by(server, tools=TOOLS, tool_choice=choice)
    assert whole == await streamed(server, tools=TOOLS, tool_choice=choice)
    if choice == "none":
        assert whole["calls"] == []
    elif answer == "calls":
        assert [(each["name"], json.loads(each["arguments"])) for each in whole["calls"]] == [
            ("weather", {"city": "Zürich"}),
            ("time", {"city": "Bern"}),
        ]
        assert whole["end"] == "tool_calls"
        assert "tool_call" not in whole["content"]
    else:
        assert whole["content"] == ANSWERS[answer].removeprefix("<think>Hm</think>")
        assert whole["end"] == "stop"


PAIRS = (("weather", "Zürich"), ("time", "Bern"))
WRITTEN = {
    name: form.written([(name, f'{{"city": "{city}"}}') for name, city in PAIRS]) for name, form in FORMATS.items()
}
"""The same two calls in the form of each shipped response template."""


@pytest.mark.parametrize("name", WRITTEN)
async def test_every_form_of_calls_is_read_the_same(name: str) -> None:
    model = replace(calling(), responses=shipped_template(name), call_format=FORMATS[name])
    server = Served(FakeEngine(model, saying(WRITTEN[name])))
    for choice in CHOICES[1:3]:
        whole = await said_by(server, tools=TOOLS, tool_choice=choice)
        assert whole == await streamed(server, tools=TOOLS, tool_choice=choice)
        assert [(each["name"], json.loads(each["arguments"])) for each in whole["calls"]] == [
            ("weather", {"city": "Zürich"}),
            ("time", {"city": "Bern"}),
        ]
        assert (whole["content"], whole["end"]) == ("", "tool_calls")


async def test_the_engine_is_asked_for_marks_and_grammars() -> None:
    engine = FakeEngine(calling(marks=True))
    server = Served(engine)
    await server.chat(tools=TOOLS, tool_choice="required", n=2)
    await server.chat(tools=TOOLS)
    assert [request.grammar is None for request in engine.submitted] == [False, False, True]
    assert all(len(request.spelled_tokens) == 4 for request in engine.submitted)


async def test_what_cannot_be_done_is_refused_before_the_engine_is_asked() -> None:
    engine = FakeEngine(calling(form=None))
    response = await Served(engine).chat(tools=TOOLS, tool_choice="required", stream=True)
    assert response.status_code == 400
    assert fault(response)["param"] == "tool_choice"
    assert not engine.submitted


async def test_an_error_amid_a_call_ends_the_stream() -> None:
    def script(request: Request) -> Iterable[Event | float]:
        yield Delta('<tool_call>{"name": "time", "argu', (1,), ())
        yield Failed(EngineError("the model failed"), usage(request))

    server = Served(FakeEngine(calling(), script))
    *_, last = events(await server.chat(tools=TOOLS, stream=True))
    assert last["error"]["message"] == "the model failed"
    response = await server.chat(tools=TOOLS)
    assert response.status_code == 500
    assert response.json()["partial_response"]["choices"][0]["finish_reason"] == "error"


async def test_a_client_that_leaves_amid_a_call_cancels_it() -> None:
    def script(request: Request) -> Iterable[Event | float]:
        yield Delta("<think>Hm</think>" + call("time", city="a"), (1,), ())
        yield 1e6

    engine = FakeEngine(calling(), script)
    asking = asyncio.create_task(Served(engine).chat(tools=TOOLS))
    await until(lambda: engine.num_playing == 1)
    asking.cancel()
    await until(lambda: engine.num_playing == 0)


async def test_stops_and_logprobs_go_with_tools() -> None:
    engine = FakeEngine(calling(), saying(call("time", city="a")))
    found = await said_by(Served(engine), tools=TOOLS, stop=["</done>"], logprobs=True, top_logprobs=2)
    assert found["end"] == "tool_calls"
    assert engine.submitted[0].sampling.stop == ("</done>",)


async def test_the_prompt_with_tools_can_be_seen_and_counted() -> None:
    engine = FakeEngine(calling())
    server = Served(engine)
    body = {"messages": "hi", "tools": TOOLS, "reasoning_effort": "high"}
    prompt = (await server.post("/apply-template", body)).json()["prompt"]
    assert f"<tools>{json.dumps(TOOLS[0])}" in prompt
    await server.chat(**body)
    tokens = (await server.post("/tokenize", body)).json()["tokens"]
    assert tuple(tokens) == engine.submitted[0].prompt
    assert fault(await server.post("/apply-template", {**body, "tools": [{"type": "x"}]}))["param"] == "tools[0].type"
    response = await server.post("/tokenize", {"prompt": "x", "tools": TOOLS})
    assert response.headers["x-mistralrs-ignored"] == "tools"
