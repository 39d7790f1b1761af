"""The Responses API and the Messages API over HTTP: shapes, named events, keys, and errors as their clients read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
import pytest

from mistralrs.api.schemas.translated.messages_bodies import MessagesAnswer, MessagesError, MessagesEvent, TokenCount
from mistralrs.api.schemas.translated.responses_bodies import ResponseEvent, ResponsesAnswer
from mistralrs.api.served_model import ServedModel
from mistralrs.engine.config import Request
from mistralrs.engine.events import Delta, Event, Finished
from mistralrs.errors import EngineError, QueueFullError
from mistralrs.server.settings import ServerSettings
from tests.server.fake import FakeEngine, broken, usage
from tests.server.harness import CHAT, Served, fault

pytestmark = pytest.mark.anyio

RESPONSES, MESSAGES, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
ASK: dict[str, Any] = {"input": "Hi"}
WRITE: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
KEYS = ServerSettings(api_keys=("first key",))


def named_events(response: httpx.Response) -> list[dict[str, Any]]:
    """Returns the events of a stream, whose names are their types; comments are left out."""
    found = []
    for block in response.text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


def messages_fault(response: httpx.Response) -> tuple[int, str, str]:
    """Returns the status, the type and the words of an error in Anthropic's shape."""
    error = MessagesError.model_validate(response.json()).error
    return response.status_code, error.type, error.message


async def test_a_response_is_as_declared(server: Served, engine: FakeEngine) -> None:
    response = await server.post(RESPONSES, {**ASK, "instructions": "Be short.", "store": True})
    assert response.status_code == 200
    answer = ResponsesAnswer.model_validate(response.json())
    assert answer.id.startswith("resp_")
    assert (answer.model, answer.status) == ("tiny", "completed")
    [item] = answer.output
    assert item.type == "message"
    assert item.content[0].text == "Hello world"
    assert answer.usage is not None
    assert answer.usage.input_tokens == len(engine.submitted[0].prompt)
    assert response.headers["x-mistralrs-ignored"] == "store"


async def test_a_streamed_response_is_named_events(server: Served) -> None:
    response = await server.post(RESPONSES, {**ASK, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = named_events(response)
    assert [ResponseEvent.model_validate(event).sequence_number for event in events] == list(range(len(events)))
    whole = (await server.post(RESPONSES, ASK)).json()
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.completed"
    assert _plain(last) == _plain(whole)
    assert "[DONE]" not in response.text


def _plain(answer: dict[str, Any]) -> dict[str, Any]:
    """Returns a response without what no two have in common."""
    items = [{**item, "id": ""} for item in answer["output"]]
    return {**answer, "id": "", "created_at": 0, "output": items}


async def test_a_message_is_as_declared(server: Served, engine: FakeEngine) -> None:
    response = await server.post(MESSAGES, WRITE, headers={"anthropic-version": "2023-06-01"})
    assert response.status_code == 200
    answer = MessagesAnswer.model_validate(response.json())
    assert answer.id.startswith("msg_")
    assert answer.content[0].model_dump() == {"type": "text", "text": "Hello world"}
    assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", len(engine.submitted[0].prompt))


async def test_a_streamed_message_is_named_events(server: Served) -> None:
    response = await server.post(f"{MESSAGES}?beta=true", {**WRITE, "stream": True})
    events = named_events(response)
    assert [MessagesEvent.model_validate(event).type for event in events] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    whole = (await server.post(MESSAGES, WRITE)).json()
    assert events[-2]["usage"] == whole["usage"]


async def test_a_silent_stream_has_pings_of_its_api(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEP_ALIVE_INTERVAL", "10")

    def slow(request: Request) -> Iterable[Event | float]:
        yield 0.3
        yield Finished("stop", usage(request))

    engine.script = slow
    server = Served(engine, ServerSettings())
    assert {"type": "ping"} in named_events(await server.post(MESSAGES, {**WRITE, "stream": True}))
    assert ": ping\n\n" in (await server.post(RESPONSES, {**ASK, "stream": True})).text


async def test_the_stop_sequence_is_named(server: Served, engine: FakeEngine) -> None:
    def stopped(request: Request) -> Iterable[Event]:
        yield Delta("Hello", (11,), ())
        yield Finished("stop", usage(request), "END")

    engine.script = stopped
    answer = (await server.post(MESSAGES, {**WRITE, "stop_sequences": ["END"]})).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "END")
    assert engine.submitted[0].sampling.stop == ("END",)


async def test_tokens_are_counted(server: Served, engine: FakeEngine) -> None:
    response = await server.post(COUNT, {"messages": WRITE["messages"]})
    counted = TokenCount.model_validate(response.json())
    await server.post(MESSAGES, WRITE)
    assert counted.input_tokens == len(engine.submitted[0].prompt)
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_no_response_is_kept(server: Served, method: str) -> None:
    for path in (f"{RESPONSES}/resp_1", f"{RESPONSES}/resp_1/input_items"):
        response = await server.client.request(method, path)
        assert (response.status_code, fault(response)["code"]) == (404, "response_not_found")


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_they_need_no_version_in_their_path(server: Served, path: str) -> None:
    body = ASK if path == RESPONSES else WRITE
    for given in (path.removeprefix("/v1"), f"/v1{path}", f"{path}/"):
        assert (await server.post(given, body)).status_code == 200


# Errors


async def test_errors_of_responses_have_openais_shape(server: Served) -> None:
    response = await server.post(RESPONSES, {**ASK, "previous_response_id": "resp_1"})
    assert (response.status_code, fault(response)["param"]) == (400, "previous_response_id")
    assert fault(response)["code"] == "unsupported_parameter"


async def test_errors_of_messages_have_anthropics_shape(server: Served, engine: FakeEngine) -> None:
    wrong = await server.post(MESSAGES, {"messages": WRITE["messages"]})
    assert messages_fault(wrong) == (400, "invalid_request_error", "max_tokens is required")
    assert messages_fault(await server.get(MESSAGES))[:2] == (405, "invalid_request_error")
    assert messages_fault(await server.get(f"{MESSAGES}/x"))[:2] == (404, "not_found_error")
    engine.refusal = QueueFullError(1)
    full = await server.post(MESSAGES, WRITE)
    assert messages_fault(full)[:2] == (429, "rate_limit_error")
    assert full.headers["retry-after"] == "1"
    engine.refusal = EngineError("gone", code="engine_dead")
    assert messages_fault(await server.post(MESSAGES, WRITE))[:2] == (503, "overloaded_error")


async def test_the_doors_speak_the_addresss_language(engine: FakeEngine) -> None:
    closed = Served(engine, KEYS)
    assert messages_fault(await closed.post(MESSAGES, WRITE))[:2] == (401, "authentication_error")
    assert fault(await closed.post(RESPONSES, ASK))["code"] == "invalid_api_key"
    headers = {"host": "evil.example"}
    assert messages_fault(await Served(engine).post(MESSAGES, WRITE, headers=headers))[:2] == (403, "permission_error")
    engine.refusal = MemoryError()  # type: ignore[assignment]
    assert messages_fault(await Served(engine).post(MESSAGES, WRITE))[:2] == (500, "api_error")


async def test_a_key_may_come_as_anthropics_clients_send_it(engine: FakeEngine) -> None:
    closed = Served(engine, KEYS)
    for path, body in ((MESSAGES, WRITE), (CHAT, {"messages": "Hi"})):
        assert (await closed.post(path, body, headers={"x-api-key": "first key"})).status_code == 200
        assert (await closed.post(path, body, headers={"x-api-key": "first ke"})).status_code == 401
        both = {"x-api-key": "first key", "authorization": "Bearer wrong"}
        assert (await closed.post(path, body, headers=both)).status_code == 200


async def test_an_answer_that_fails_midway(server: Served, engine: FakeEngine) -> None:
    engine.script = broken
    whole = await server.post(RESPONSES, ASK)
    assert whole.status_code == 500
    [item] = whole.json()["partial_response"]["output"]
    assert item["content"][0]["text"] == "Hel"
    assert messages_fault(await server.post(MESSAGES, WRITE)) == (500, "api_error", "the model failed")

    failed = named_events(await server.post(RESPONSES, {**ASK, "stream": True}))[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "internal_error", "message": "the model failed"}
    last = named_events(await server.post(MESSAGES, {**WRITE, "stream": True}))[-1]
    assert last == {"type": "error", "error": {"type": "api_error", "message": "the model failed"}}


def _long(model: ServedModel) -> Sequence[dict[str, str]]:
    return [{"role": "user", "content": "word " * 4 * model.max_len}]


async def test_a_prompt_that_is_too_long_is_refused_in_each_shape(server: Served, model: ServedModel) -> None:
    response = await server.post(RESPONSES, {"input": _long(model)})
    assert (response.status_code, fault(response)["code"]) == (400, "context_length_exceeded")
    assert fault(response)["param"] == "input"
    status, kind, words = messages_fault(await server.post(MESSAGES, {**WRITE, "messages": _long(model)}))
    assert (status, kind) == (400, "invalid_request_error")
    assert "maximum context length" in words
