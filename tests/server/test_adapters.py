"""Adapters over HTTP: chosen by every name that clients use, listed, and changed only where that is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from mistralrs.api.loaded_adapters.adapter_changes import ActivateAdapters, LoadAdapter, UnloadAdapter
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapter, KnownAdapters, ScalingAxes
from mistralrs.api.served_model import ServedModel
from mistralrs.engine.config import Request
from mistralrs.engine.events import AdaptersChosen, Delta, Embedding, Event, Failed, Finished
from mistralrs.errors import RequestError
from mistralrs.server import status_bodies
from mistralrs.server.settings import ServerSettings
from tests.server.fake import FakeEngine, usage
from tests.server.harness import CHAT, COMPLETIONS, QUESTION, Served, events, fault

pytestmark = pytest.mark.anyio

KNOWN = KnownAdapters(
    (
        KnownAdapter("style", "/adapters/style", 8, "0a" * 16),
        KnownAdapter("owner/law", "owner/law@v1", 4, "0b" * 16, acts_alone="use_dora"),
        KnownAdapter("late", "/adapters/late", 4, "0c" * 16, is_alora=True),
    ),
    active={"style": 0.5},
    max_adapters=2,
    generation=7,
)


CHOSEN = AdaptersChosen(7, ((b"a" * 16, 1.0),))


def acting(request: Request) -> Iterable[Event | float]:
    """An answer on which adapters act."""
    yield CHOSEN
    if request.pooling is not None:
        yield Embedding((0.6, 0.8))
    else:
        yield Delta("Hello", (11,), ())
    yield Finished("stop", usage(request))


def with_adapters(model: ServedModel, known: KnownAdapters = KNOWN) -> FakeEngine:
    return FakeEngine(replace(model, adapters=known), acting)


@pytest.fixture
async def engine(model: ServedModel) -> FakeEngine:
    return with_adapters(model)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, None),
        ({"model": "tiny-llama"}, None),
        ({"model": "default"}, None),
        ({"model": "style"}, {"style": 1.0}),
        ({"model": "owner/law"}, {"owner/law": 1.0}),
        ({"adapter": "style"}, {"style": 1.0}),
        ({"adapter": "none"}, {}),
        ({"adapter_id": "late"}, {"late": 1.0}),
        ({"adapters": {"style": 0.25, "late": -1}}, {"style": 0.25, "late": -1.0}),
        ({"adapters": {}}, {}),
        ({"adapters": {"style": 0}}, {}),
        ({"lora": [{"id": 2, "scale": 2}, {"id": 0, "scale": 0.5}]}, {"style": 0.5, "late": 2.0}),
        ({"lora": []}, {}),
        ({"lora": [{"id": 1, "scale": 0}]}, {}),
        ({"model": "style", "adapter": "style", "adapters": {"style": 1}}, {"style": 1.0}),
        ({"model": "tiny-llama", "adapter": "late"}, {"late": 1.0}),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/embeddings"])
async def test_a_request_chooses_adapters(
    engine: FakeEngine, path: str, fields: dict[str, Any], weights: dict[str, float] | None
) -> None:
    server = Served(engine, ServerSettings(model_name="tiny-llama", strict=True))
    least = {CHAT: {"messages": "Hi"}, COMPLETIONS: {"prompt": "Hi"}}.get(path, {"input": "Hi"})
    response = await server.post(path, {**least, **fields})
    assert response.status_code == 200, response.text
    assert engine.chosen == [weights]
    chosen = fields.get("model", "tiny-llama")
    assert response.json()["model"] == ("tiny-llama" if chosen == "default" else chosen)
    assert response.json()["adapter_generation"] == 7
    assert "x-mistralrs-model" not in response.headers


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "styl"}, 404, "model_not_found", "model"),
        ({"model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"adapter": "styl"}, 404, "adapter_not_found", "adapter"),
        ({"adapter_id": "styl"}, 404, "adapter_not_found", "adapter_id"),
        ({"adapters": {"styl": 1}}, 404, "adapter_not_found", "adapters"),
        ({"adapters": {"styl": 0}}, 404, "adapter_not_found", "adapters"),
        ({"lora": [{"id": 0, "scale": 1}, {"id": 3, "scale": 1}]}, 404, "adapter_not_found", "lora[1].id"),
        ({"lora": [{"id": 0, "scale": 1}, {"id": 0, "scale": 2}]}, 400, "invalid_value", "lora[1].id"),
        ({"lora": [{"id": 0}]}, 400, "invalid_value", "lora[0].scale"),
        ({"lora": [{"id": 0, "scale": 1, "path": "x"}]}, 400, "invalid_value", "lora[0].path"),
        ({"adapters": {"style": "1"}}, 400, "invalid_value", "adapters.style"),
        ({"adapters": ["style"]}, 400, "invalid_value", "adapters"),
        ({"model": "style", "adapter": "late"}, 400, "invalid_value", "adapter"),
        ({"adapter": "style", "adapters": {"style": 0.5}}, 400, "invalid_value", "adapters"),
        ({"adapter": "none", "lora": [{"id": 0, "scale": 1}]}, 400, "invalid_value", "lora"),
        ({"model": "style", "adapter": "none"}, 400, "invalid_value", "adapter"),
        ({"adapters": {"owner/law": 1, "style": 1}}, 400, "invalid_value", "adapters"),
        ({"adapters": {"owner/law": 0.5}}, 400, "invalid_value", "adapters"),
    ],
)
async def test_what_cannot_act_is_refused_before_anything_is_queued(
    engine: FakeEngine, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    response = await Served(engine).post(CHAT, {"messages": "Hi", **fields})
    assert response.status_code == status, response.text
    assert (fault(response)["code"], fault(response)["param"]) == (code, param)
    assert engine.submitted == []


async def test_more_adapters_than_can_act_at_once(model: ServedModel) -> None:
    engine = with_adapters(model, replace(KNOWN, max_adapters=1))
    response = await Served(engine).post(CHAT, {"messages": "Hi", "adapters": {"style": 1, "late": 1}})
    assert response.status_code == 400
    assert "--max-adapters" in fault(response)["message"]


async def test_a_model_without_adapters_has_none_to_choose(model: ServedModel) -> None:
    server = Served(FakeEngine(model))
    assert (await server.chat(model="gpt-4")).headers["x-mistralrs-model"]
    assert (await server.chat(adapter="none", adapters={})).status_code == 200
    response = await server.chat(adapter="style")
    assert (response.status_code, fault(response)["code"]) == (404, "adapter_not_found")
    assert "adapter_generation" not in (await server.chat()).json()


async def test_streams_say_the_generation_once(engine: FakeEngine) -> None:
    for path, body in ((CHAT, QUESTION), (COMPLETIONS, {"prompt": "Hi"})):
        response = await Served(engine).post(path, {**body, "model": "style", "stream": True})
        *chunks, done = events(response)
        assert done == "[DONE]"
        assert [chunk.get("adapter_generation") for chunk in chunks][-1] == 7
        assert sum("adapter_generation" in chunk for chunk in chunks) == 1
        assert {chunk["model"] for chunk in chunks} == {"style"}


async def test_full_slots_are_429(engine: FakeEngine) -> None:
    error = RequestError("open requests use all 2 adapter slots", code="adapter_slots_full", param="adapters")
    engine.script = lambda request: iter([Failed(error, usage(request))])
    response = await Served(engine).chat(model="style")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert fault(response)["code"] == "adapter_slots_full"


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_choices_of_different_adapters_are_no_answer(engine: FakeEngine, path: str) -> None:
    """The name came to mean another adapter between two choices of one request."""
    chosen = iter((CHOSEN, AdaptersChosen(8, ((b"b" * 16, 1.0),))))
    engine.script = lambda request: iter([next(chosen), *list(acting(request))[1:]])
    body = {**QUESTION, "model": "style", "n": 2} if path == CHAT else {"model": "style", "input": ["a", "b"]}
    response = await Served(engine).post(path, body)
    assert (response.status_code, fault(response)["code"]) == (503, "adapter_unavailable")


async def test_merged_adapters_act_on_everything(model: ServedModel) -> None:
    engine = with_adapters(model, KnownAdapters(KNOWN.adapters[:1], active={"style": 1.0}, merged={"style": 1.0}))
    server = Served(engine, ServerSettings(model_name="tiny"))
    for fields in ({}, {"model": "style"}, {"adapters": {"style": 1}}):
        assert (await server.chat(**fields)).status_code == 200
    for fields in ({"adapter": "none"}, {"adapters": {"style": 0.5}}):
        response = await server.chat(**fields)
        assert response.status_code == 400
        assert "merged into the model's weights" in fault(response)["message"]


async def test_models_are_the_base_and_its_adapters(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(model_name="tiny"))
    base, *adapters = (await server.get("/v1/models")).json()["data"]
    assert (base["id"], base.get("parent")) == ("tiny", None)
    assert [each["id"] for each in adapters] == ["style", "owner/law", "late"]
    assert {each["parent"] for each in adapters} == {"tiny"}
    assert adapters[0]["root"] == "/adapters/style"
    assert adapters[1]["max_model_len"] == base["max_model_len"]
    for path in ("owner/law", "owner%2Flaw"):
        assert (await server.get(f"/v1/models/{path}")).json() == adapters[1]
    assert fault(await server.get("/v1/models/styl"))["code"] == "model_not_found"


async def test_tokens_of_an_adapters_model(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(model_name="tiny"))
    response = await server.post("/tokenize", {"model": "style", "prompt": "Hi"})
    assert "x-mistralrs-model" not in response.headers
    assert (await server.post("/tokenize", {"model": "styl", "prompt": "Hi"})).status_code == 404
    response = await server.post("/tokenize", {"prompt": "Hi", "adapter": "style"})
    assert response.headers["x-mistralrs-ignored"] == "adapter"


async def test_the_lists(engine: FakeEngine) -> None:
    server = Served(engine)
    listed = (await server.get("/v1/lora_adapters")).json()
    status_bodies.AdapterList.model_validate(listed)
    assert [each["id"] for each in listed["data"]] == ["style", "owner/law", "late"]
    assert [each["weight"] for each in listed["data"]] == [0.5, 0, 0]
    assert (listed["generation"], listed["max_adapters"]) == (7, 2)
    scales = (await server.get("/lora-adapters")).json()
    status_bodies.LoraAdapters.model_validate(scales)
    assert scales[0] == {"id": 0, "name": "style", "path": "/adapters/style", "scale": 0.5}


LOAD, UNLOAD, SCALES = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/lora-adapters"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (LOAD, {"lora_name": "new", "lora_path": "new"}),
        (UNLOAD, {"lora_name": "style"}),
        (SCALES, [{"id": 0, "scale": 1}]),
    ],
)
async def test_changes_need_the_operators_word(engine: FakeEngine, path: str, body: object) -> None:
    response = await Served(engine).post(path, body)
    assert (response.status_code, fault(response)["code"]) == (403, "adapter_changes_forbidden")
    assert "--allow-adapter-changes" in fault(response)["message"]
    assert engine.changes == []


async def test_an_xlora_keeps_its_adapters(model: ServedModel) -> None:
    engine = with_adapters(model, KnownAdapters(mixture="two", scaling_axes=ScalingAxes(("a", "b"), ("layer",))))
    for settings in (ServerSettings(), ServerSettings(allow_adapter_changes=True)):
        response = await Served(engine, settings).post(LOAD, {"lora_name": "new", "lora_path": "new"})
        assert fault(response)["code"] == "adapter_changes_forbidden"
        assert "X-LoRA" in fault(response)["message"]
    assert engine.changes == []


async def test_changes(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(allow_adapter_changes=True))
    loaded = await server.post(LOAD, {"lora_name": "style", "lora_path": "style/2", "load_inplace": True})
    status_bodies.LoadedAdapter.model_validate(loaded.json())
    unloaded = await server.post(UNLOAD, {"lora_name": "late", "lora_int_id": 3})
    status_bodies.UnloadedAdapter.model_validate(unloaded.json())
    assert unloaded.headers["x-mistralrs-ignored"] == "lora_int_id"
    assert (await server.post(SCALES, [{"id": 2, "scale": 0.5}])).json() == {"success": True}
    assert engine.changes == [
        LoadAdapter("style", "style/2", load_inplace=True),
        UnloadAdapter("late"),
        ActivateAdapters({"late": 0.5}),
    ]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (LOAD, {"lora_name": "new"}, 400),
        (LOAD, {"lora_name": 1, "lora_path": "new"}, 400),
        (SCALES, {"id": 0, "scale": 1}, 400),
        (SCALES, [{"id": 9, "scale": 1}], 404),
        (SCALES, [{"id": 0, "scale": 1}, {"id": 1, "scale": 1}], 400),
    ],
)
async def test_changes_that_cannot_be(engine: FakeEngine, path: str, body: object, status: int) -> None:
    response = await Served(engine, ServerSettings(allow_adapter_changes=True)).post(path, body)
    assert response.status_code == status, response.text
    assert fault(response)["message"]
    assert engine.changes == []


async def test_errors_of_loading_are_the_clients(engine: FakeEngine) -> None:
    server = Served(engine, ServerSettings(allow_adapter_changes=True))
    for code, status in (("adapter_path_forbidden", 403), ("adapter_not_loadable", 400)):
        engine.refusal = RequestError("no", code=code, param="lora_path")
        response = await server.post(LOAD, {"lora_name": "new", "lora_path": "../x"})
        assert (response.status_code, fault(response)["code"]) == (status, code)
