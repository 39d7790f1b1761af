"""Chat and text completions: shapes, streams, headers about ignored parameters, and errors while answering."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.schemas import response_bodies
from mistralrs.api.served_model import ServedModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.errors import EngineError, QueueFullError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.server.settings import ServerSettings
from tests.server.fake import FakeEngine, broken, hello, silent
from tests.server.harness import CHAT, COMPLETIONS, QUESTION, Served, events, fault

pytestmark = pytest.mark.anyio


async def test_a_whole_answer_is_as_declared_and_says_who_gave_it(server: Served) -> None:
    response = await server.chat()
    assert response.status_code == 200
    answer = response_bodies.ChatCompletion.model_validate(response.json())
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.choices[0].message.content == "Hello world"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["server"].startswith("mistralrs/")
    assert response.headers["openai-processing-ms"].isdecimal()
    assert len(response.headers["x-request-id"]) == 32
    assert not [name for name in response.headers if name.startswith("x-mistralrs")]


async def test_a_completion_is_as_declared(server: Served) -> None:
    response = await server.post(COMPLETIONS, {"prompt": "Once", "echo": True})
    answer = response_bodies.Completion.model_validate(response.json())
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "OnceHello world"


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions/", "/chat/completions/", CHAT])
async def test_every_spelling_of_the_path_is_known(server: Served, path: str) -> None:
    assert (await server.post(path, QUESTION)).status_code == 200


async def test_a_stream_is_server_sent_events(server: Served) -> None:
    response = await server.chat(stream=True, stream_options={"include_usage": True})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, last = events(response)
    assert last == "[DONE]"
    read = [response_bodies.ChatCompletionChunk.model_validate(chunk) for chunk in chunks]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in read[:-1]) == "Hello world"
    assert read[-1].usage is not None


async def test_a_request_id_that_is_sane_comes_back(server: Served) -> None:
    sane = await server.post(CHAT, QUESTION, headers={"x-request-id": "my-id/1"})
    assert sane.headers["x-request-id"] == "my-id/1"
    for insane in ("a b", "x" * 200, "ü"):
        response = await server.post(CHAT, QUESTION, headers={"x-request-id": insane.encode()})
        assert response.headers["x-request-id"] != insane


async def test_another_model_is_accepted_and_the_answer_says_who_answered(server: Served) -> None:
    response = await server.chat(model="gpt-4o")
    assert response.json()["model"] == "tiny"
    assert response.headers["x-mistralrs-model"] == "tiny"


async def test_another_model_is_refused_where_models_are_strict(engine: FakeEngine) -> None:
    response = await Served(engine, ServerSettings(strict_model=True)).chat(model="gpt-4o")
    assert response.status_code == 404
    assert fault(response)["code"] == "model_not_found"
    assert engine.submitted == []


async def test_the_model_has_the_name_that_it_was_given(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(model_name="Modell/ä", strict_model=True))
    assert (await server.chat(model="Modell/ä")).json()["model"] == "Modell/ä"
    other = await Served(engine, ServerSettings(model_name="Modell/ä")).chat()
    assert other.headers["x-mistralrs-model"] == "Modell/%C3%A4"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_ignored_is_named(server: Served, stream: bool) -> None:
    response = await server.chat(store=True, made_up=1, stream=stream)
    assert response.status_code == 200
    assert response.headers["x-mistralrs-ignored"] == "store, made_up"


async def test_a_strict_server_refuses_what_it_would_ignore(engine: FakeEngine) -> None:
    response = await Served(engine, ServerSettings(strict=True)).chat(store=True)
    assert (response.status_code, fault(response)["param"]) == (400, "store")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_reaches_the_engine_and_its_warnings_the_caller(
    server: Served, engine: FakeEngine, stream: bool
) -> None:
    ambiguous = {"type": "yacc", "value": "%%\nE: E '+' E | 'x' ;"}
    for path, body in ((CHAT, QUESTION), (COMPLETIONS, {"prompt": "hi"})):
        response = await server.post(path, {**body, "grammar": ambiguous, "stream": stream})
        assert response.status_code == 200
        assert response.headers["x-mistralrs-warnings"].startswith("the grammar has 1 conflicts")
        assert engine.submitted[-1].grammar == GrammarText("yacc", ambiguous["value"])
        response = await server.post(path, {**body, "json_schema": {}, "stream": stream})
        assert "x-mistralrs-warnings" not in response.headers
        assert engine.submitted[-1].grammar == GrammarText("json_schema", "{}")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_cannot_be_used_is_400_before_anything_is_queued(
    server: Served, engine: FakeEngine, stream: bool
) -> None:
    schema = {"type": "object", "properties": {"age": {"not": {}}}}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    place = "response_format.json_schema.schema"
    for path, body in ((CHAT, QUESTION), (COMPLETIONS, {"prompt": "hi"})):
        response = await server.post(path, {**body, "response_format": response_format, "stream": stream})
        assert response.status_code == 400
        assert fault(response) == {
            "message": f"{place} cannot be used: /properties/age/not: not is not supported: generated text would not "
            "obey it",
            "type": "invalid_request_error",
            "param": f"{place}/properties/age/not",
            "code": "invalid_schema",
        }
        response = await server.post(path, {**body, "grammar": "root ::= x", "guided_regex": "a", "stream": stream})
        assert (response.status_code, fault(response)["param"]) == (400, "guided_regex")
    assert engine.submitted == []


async def test_a_prompt_that_is_too_long_is_refused_in_openais_words(server: Served, model: ServedModel) -> None:
    for stream in (False, True):
        response = await server.post(COMPLETIONS, {"prompt": [5] * (model.max_len + 1), "stream": stream})
        assert response.status_code == 400
        assert fault(response)["code"] == "context_length_exceeded"
        assert fault(response)["message"].startswith(f"This model's maximum context length is {model.max_len} tokens.")


async def test_a_prompt_is_cut_where_that_was_asked_for(engine: FakeEngine, model: ServedModel) -> None:
    server = Served(engine, ServerSettings(truncate=True))
    response = await server.post(COMPLETIONS, {"prompt": [5] * (model.max_len + 7), "max_tokens": 2})
    assert response.status_code == 200
    kept = len(engine.submitted[0].prompt)
    assert response.headers["x-mistralrs-truncated"] == str(model.max_len + 7 - kept)


async def test_what_the_operator_set_reaches_the_engine(engine: FakeEngine) -> None:
    sampling = SamplingParams(repeat_last_n=7, max_tokens=3)
    await Served(engine, ServerSettings(sampling=sampling, request_timeout=9.0)).chat()
    assert engine.submitted[0].sampling.repeat_last_n == 7
    assert engine.submitted[0].sampling.max_tokens == 3
    assert engine.submitted[0].deadline_s == 9.0


async def test_a_full_queue_is_429_and_nothing_of_the_request_stays(engine: FakeEngine) -> None:
    server = Served(engine)
    engine.script = silent

    submit = engine.submit

    def submit_one(request: Request, *, adapters: Mapping[str, float] | None = None) -> AsyncStream:
        stream = submit(request, adapters=adapters)
        engine.refusal = QueueFullError(2)
        return stream

    engine.submit = submit_one  # type: ignore[method-assign]
    response = await server.chat(n=3)
    assert response.status_code == 429
    assert fault(response)["type"] == "rate_limit_error"
    assert fault(response)["code"] == "queue_full"
    assert response.headers["retry-after"] == "1"
    assert len(server.service.inflight) == 0


async def test_a_failure_is_500_with_what_there_was(engine: FakeEngine) -> None:
    engine.script = broken
    response = await Served(engine).chat()
    assert response.status_code == 500
    assert fault(response)["type"] == "server_error"
    partial = response.json()["partial_response"]
    assert partial["choices"][0]["message"]["content"] == "Hel"
    assert partial["choices"][0]["finish_reason"] == "error"


async def test_a_failure_ends_a_stream_with_an_error(engine: FakeEngine) -> None:
    engine.script = broken
    response = await Served(engine).chat(stream=True)
    assert response.status_code == 200
    error = events(response)[-1]
    assert set(error) == {"error"}
    assert error["error"] == {
        "message": "the model failed",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


async def test_a_deadline_is_504(engine: FakeEngine) -> None:
    engine.refusal = EngineError("took too long", code="deadline_exceeded")
    response = await Served(engine).chat()
    assert (response.status_code, fault(response)["code"]) == (504, "deadline_exceeded")


async def test_a_defect_is_500_tells_nothing_and_is_reported(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError("secret")

    server = Served(engine)
    monkeypatch.setattr(engine, "submit", defect)
    response = await server.chat()
    assert response.status_code == 500
    assert fault(response)["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"]
    reported = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(reported) == 1
    assert response.headers["x-request-id"] in reported[0].getMessage()
    engine.submit = FakeEngine.submit.__get__(engine)  # type: ignore[method-assign]
    assert (await server.chat()).status_code == 200


async def test_nothing_stays_behind(engine: FakeEngine) -> None:
    server = Served(engine)
    for script in (hello, broken):
        engine.script = script
        await server.chat(n=2)
        await server.chat(stream=True)
        await server.post(COMPLETIONS, {"prompt": ["a", "b"], "stream": True})
    assert len(server.service.inflight) == 0
    assert engine.num_playing == 0


async def test_embeddings_come_as_numbers_and_as_base64(server: Served, engine: FakeEngine) -> None:
    numbers = await server.post("/v1/embeddings", {"input": ["a", "b"]})
    listed = response_bodies.EmbeddingList.model_validate(numbers.json())
    assert [entry.embedding for entry in listed.data] == [[0.6, 0.8], [0.6, 0.8]]
    assert [entry.index for entry in listed.data] == [0, 1]
    assert {request.pooling for request in engine.submitted} == {"mean"}
    coded = await server.post("/embeddings", {"input": [1, 2, 3], "encoding_format": "base64"})
    assert coded.json()["data"][0]["embedding"] == "mpkZP83MTD8="
    assert coded.json()["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_embeddings_of_another_size_are_refused(server: Served) -> None:
    response = await server.post("/v1/embeddings", {"input": "a", "dimensions": 3})
    assert (response.status_code, fault(response)["param"]) == (400, "dimensions")


async def test_the_json_of_an_answer_is_utf8(engine: FakeEngine) -> None:
    response = await Served(engine).post(COMPLETIONS, {"prompt": "Grüße \u2028 😀", "echo": True})
    assert json.loads(response.content.decode("utf-8"))["choices"][0]["text"].startswith("Grüße \u2028 😀")


async def test_the_log_holds_requests_answers_chunks_and_errors(engine: FakeEngine, tmp_path: Path) -> None:
    keys = ("sk-0123456789",)
    server = Served(engine, ServerSettings(log=tmp_path / "log", api_keys=keys))
    client = server.client
    client.headers["authorization"] = f"Bearer {keys[0]}"
    bodies: list[dict[str, object]] = [{}, {"stream": True}, {"n": 0}, {"note": keys[0]}]
    for number, more in enumerate(bodies):
        await client.post(CHAT, json={**QUESTION, **more}, headers={"x-request-id": f"id{number}"})
    engine.script = broken
    await client.post(CHAT, json={**QUESTION, "stream": True}, headers={"x-request-id": "id4"})
    records = server.logged()
    of = {number: [record for record in records if record["id"] == f"id{number}"] for number in range(5)}
    assert [record["kind"] for record in of[0]] == ["request", "response"]
    assert of[0][0]["body"] == QUESTION
    assert of[0][0]["path"] == CHAT
    response_bodies.ChatCompletion.model_validate(of[0][1]["body"])
    assert [record["kind"] for record in of[1]] == ["request", *["chunk"] * 4]
    response_bodies.ChatCompletionChunk.model_validate(of[1][1]["body"])
    assert [record["kind"] for record in of[2]] == ["request", "error"]
    assert (of[2][1]["status"], of[2][1]["body"]["error"]["param"]) == (400, "n")
    assert of[4][-1]["kind"] == "error"
    assert keys[0] not in (tmp_path / "log").read_text()


async def test_the_log_can_be_without_what_was_said(engine: FakeEngine, tmp_path: Path) -> None:
    server = Served(engine, ServerSettings(log=tmp_path / "log", log_bodies=False))
    await server.chat()
    await server.chat(stream=True)
    await server.chat(n=0)
    records = server.logged()
    assert [record["kind"] for record in records] == ["request", "response", "request", "request", "error"]
    assert not any("body" in record for record in records)
