"""The server's reports about itself, and the keys that may see and end requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx
import pytest

from mistralrs.api.schemas import response_bodies
from mistralrs.api.served_model import ServedModel
from mistralrs.errors import EngineError
from mistralrs.server import status_bodies as own
from mistralrs.server.settings import ServerSettings
from mistralrs.text.response.shipped_templates import shipped_template
from tests.api.served import served
from tests.api.tooling import TOOLS, calling
from tests.server.fake import FakeEngine, endless, silent
from tests.server.harness import CHAT, QUESTION, Served, events, fault, until

pytestmark = pytest.mark.anyio

KEYS = ServerSettings(api_keys=("first key", "zweiter schlüssel"))
FIRST, SECOND = (httpx.Headers({"authorization": f"Bearer {key}"}, "utf-8") for key in KEYS.api_keys)


async def test_health_follows_the_engine(engine: FakeEngine) -> None:
    server = Served(None)
    for path in ("/health", "/ready", "/health/"):
        loading = await server.get(path)
        assert (loading.status_code, fault(loading)["code"]) == (503, "model_loading")
        assert loading.headers["retry-after"]
    assert (await server.client.head("/health")).status_code == 503
    server.service.open(engine)
    assert (await server.get("/health")).text == "OK"
    assert (await server.client.head("/ready")).status_code == 200
    engine.die()
    dead = await server.get("/health")
    assert (dead.status_code, fault(dead)["code"]) == (503, "engine_dead")


async def test_while_there_is_no_engine_requests_are_503_and_the_rest_works(engine: FakeEngine) -> None:
    server = Served(None)
    for response in (
        await server.chat(),
        await server.post("/tokenize", {"content": "a"}),
        await server.get("/v1/models"),
    ):
        assert (response.status_code, fault(response)["type"]) == (503, "service_unavailable_error")
        assert response.headers["retry-after"]
    for path in ("/", "/version", "/metrics", "/docs", "/openapi.json", "/v1/capabilities"):
        assert (await server.get(path)).status_code == 200


async def test_a_server_that_ends_takes_nothing_new(server: Served) -> None:
    server.service.draining = True
    for response in (await server.chat(), await server.get("/health")):
        assert (response.status_code, fault(response)["code"]) == (503, "shutting_down")


async def test_the_root_and_the_version(server: Served) -> None:
    assert (await server.get("/")).text == "OK"
    own.Version.model_validate((await server.get("/version")).json())


async def test_models_tell_their_context_under_every_name(server: Served) -> None:
    listed = (await server.get("/v1/models")).json()
    [card] = response_bodies.ModelList.model_validate(listed).data
    assert card.max_model_len == card.context_length == card.meta.n_ctx == 512
    assert card.default_sampling == {}
    for path in ("/v1/models/tiny", "/models/tiny/", "/v1/models/default"):
        assert (await server.get(path)).json() == listed["data"][0]
    unknown = await server.get("/v1/models/gpt-4o")
    assert (unknown.status_code, fault(unknown)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("model", "has", "lacks"),
    [
        (calling(), {"chat", "tools", "forced_tools", "thinking", "thinking_budget"}, set()),
        (calling(form=None), {"tools", "thinking"}, {"forced_tools"}),
        (served(None), {"completion", "embedding"}, {"chat", "tools", "forced_tools", "thinking", "thinking_budget"}),
        (
            replace(calling(form=None), responses=shipped_template("harmony")),
            {"tools", "thinking"},
            {"forced_tools", "thinking_budget"},
        ),
        (replace(served(max_len=4000), responses=shipped_template("hermes")), {"thinking"}, {"tools"}),
        (
            replace(served(max_len=4000), responses=shipped_template("think")),
            {"thinking", "thinking_budget"},
            {"tools"},
        ),
    ],
)
async def test_models_tell_their_capabilities(model: ServedModel, has: set[str], lacks: set[str]) -> None:
    """A request for anything else is refused."""
    server = Served(FakeEngine(model))
    [card] = (await server.get("/v1/models")).json()["data"]
    abilities = set(card["capabilities"])
    assert has | {"completion", "embedding", "structured_outputs"} <= abilities
    assert not lacks & abilities
    for ability, fields in (
        ("tools", {"tools": TOOLS}),
        ("forced_tools", {"tools": TOOLS, "tool_choice": "required"}),
        ("thinking_budget", {"thinking_token_budget": 3}),
        ("chat", {}),
    ):
        assert (await server.chat(**fields)).status_code == (200 if ability in abilities else 400), ability


async def test_a_model_id_may_hold_a_slash(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(model_name="owner/name"))
    for path in ("/v1/models/owner/name", "/v1/models/owner%2Fname"):
        assert (await server.get(path)).json()["id"] == "owner/name"


async def test_capabilities_are_the_table(server: Served) -> None:
    table = own.Capabilities.model_validate((await server.get("/v1/capabilities")).json())
    assert "temperature" in {row.name for row in table.endpoints["chat"].applied}


async def test_metrics_count_requests_and_show_the_engine(server: Served, engine: FakeEngine) -> None:
    await server.chat(stream=True)
    await server.chat(n=0)
    await server.get("/nowhere")
    text = (await server.get("/metrics")).text
    assert 'mistralrs_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0' in text
    assert 'mistralrs_requests_total{endpoint="/v1/chat/completions",status="400"} 1.0' in text
    assert 'mistralrs_requests_total{endpoint="other",status="404"} 1.0' in text
    assert "mistralrs_time_to_first_token_seconds_count 1.0" in text
    assert "mistralrs_inter_token_seconds_count 1.0" in text
    assert "mistralrs_kv_blocks_free 60.0" in text
    assert "mistralrs_prefix_hit_tokens_total 40.0" in text
    assert "mistralrs_draft_tokens_total 30.0" in text
    assert "mistralrs_draft_tokens_accepted_total 20.0" in text
    engine.die()
    assert "mistralrs_kv_blocks" not in (await server.get("/metrics")).text


async def test_requests_under_way_are_listed_and_can_be_ended(server: Served, engine: FakeEngine) -> None:
    engine.script = endless
    stream = asyncio.create_task(server.post(CHAT, {**QUESTION, "stream": True}, headers={"x-request-id": "mine"}))
    await until(lambda: any(live.tokens for live in server.service.inflight.of("")))
    listed = own.RequestList.model_validate((await server.get("/v1/requests")).json())
    [facts] = listed.data
    assert (facts.request_id, facts.endpoint, facts.state, facts.choices) == ("mine", CHAT, "decode", 1)
    assert facts.tokens > 0
    ended = await server.client.delete(f"/v1/requests/{facts.id}")
    assert ended.json() == {"id": facts.id, "object": "request", "cancelled": True}
    *chunks, error = events(await stream)
    assert chunks[0]["id"] == facts.id
    assert error["error"]["code"] == "request_cancelled"
    assert engine.num_cancelled == 1
    assert (await server.get("/v1/requests")).json()["data"] == []


async def test_an_engine_that_stands_still_is_told_and_may_go_on(server: Served, engine: FakeEngine) -> None:
    engine.script = endless
    stream = asyncio.create_task(server.post(CHAT, {**QUESTION, "stream": True}, headers={"x-request-id": "old"}))
    await until(lambda: any(live.tokens for live in server.service.inflight.of("")))
    engine.script = silent
    asked = asyncio.create_task(server.post(CHAT, QUESTION, headers={"x-request-id": "new"}))
    await until(lambda: engine.num_playing == 2)
    engine.stalled = EngineError("it stands still", code="engine_stalled")
    for path in ("/health", "/ready"):
        unwell = await server.get(path)
        assert (unwell.status_code, fault(unwell)["code"], unwell.headers["retry-after"]) == (
            503,
            "engine_stalled",
            "5",
        )
    assert (await server.chat()).status_code == 503
    assert (await server.get("/v1/models")).status_code == 200
    metrics = (await server.get("/metrics")).text
    assert "mistralrs_serving 0.0" in metrics
    assert "mistralrs_requests_open 2.0" in metrics
    assert "mistralrs_kv_blocks" not in metrics
    listed = (await server.get("/v1/requests")).json()["data"]
    assert {facts["request_id"]: facts["state"] for facts in listed} == {"old": "decode", "new": "queued"}
    engine.stalled = None
    assert (await server.get("/health")).status_code == 200
    assert "mistralrs_serving 1.0" in (await server.get("/metrics")).text
    for id in ("old", "new"):
        await server.client.delete(f"/v1/requests/{id}")
    await asyncio.gather(stream, asked)


async def test_ending_a_whole_answer_is_499(server: Served, engine: FakeEngine) -> None:
    engine.script = endless
    asked = asyncio.create_task(server.post(CHAT, QUESTION, headers={"x-request-id": "mine"}))
    await until(lambda: engine.num_playing == 1)
    assert (await server.client.delete("/v1/requests/mine")).status_code == 200
    assert ((await asked).status_code, fault(await asked)["code"]) == (499, "request_cancelled")


async def test_nobody_ends_what_is_not_there(server: Served) -> None:
    response = await server.client.delete("/v1/requests/chatcmpl-1")
    assert (response.status_code, fault(response)["code"]) == (404, "request_not_found")


async def test_the_youngest_requests_are_those_that_wait(server: Served, engine: FakeEngine) -> None:
    engine.script = silent
    asked = []
    for number in range(3):
        asked.append(asyncio.create_task(server.post(CHAT, QUESTION, headers={"x-request-id": str(number)})))
        await until(lambda: engine.num_playing == len(asked))
    engine.waiting = 1
    listed = (await server.get("/v1/requests")).json()["data"]
    assert [facts["state"] for facts in listed] == ["prefill", "prefill", "queued"]
    for number in range(3):
        await server.client.delete(f"/v1/requests/{number}")
    await asyncio.gather(*asked)


async def test_one_key_neither_sees_nor_ends_the_requests_of_another(engine: FakeEngine) -> None:
    server = Served(engine, KEYS)
    engine.script = endless
    asked = asyncio.create_task(
        server.post(CHAT, QUESTION, headers=httpx.Headers({**FIRST, "x-request-id": "mine"}, "utf-8"))
    )
    await until(lambda: engine.num_playing == 1)
    assert (await server.get("/v1/requests", headers=SECOND)).json()["data"] == []
    assert (await server.client.delete("/v1/requests/mine", headers=SECOND)).status_code == 404
    assert len((await server.get("/v1/requests", headers=FIRST)).json()["data"]) == 1
    assert (await server.client.delete("/v1/requests/mine", headers=FIRST)).status_code == 200
    assert (await asked).status_code == 499


async def test_keys_may_be_kept_apart_in_the_prefix_cache(engine: FakeEngine) -> None:
    for isolate in (False, True):
        server = Served(engine, ServerSettings(api_keys=KEYS.api_keys, isolate_keys=isolate))
        engine.submitted.clear()
        for headers in (FIRST, SECOND, FIRST):
            await server.post(CHAT, QUESTION, headers=headers)
        first, second, again = (request.cache_salt for request in engine.submitted)
        assert first == again
        assert (first != second) == isolate
        assert not any(key in first + second for key in KEYS.api_keys)
