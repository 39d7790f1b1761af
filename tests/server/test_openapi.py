"""The description of the server: complete, true, and readable without a network."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import BaseModel, RootModel

from mistralrs.server.app import BODIES
from mistralrs.server.settings import ServerSettings
from tests.server.fake import FakeEngine
from tests.server.harness import Served

pytestmark = pytest.mark.anyio

UNDESCRIBED = {"/docs", "/redoc", "/docs/oauth2-redirect", "/openapi.json", "/api-doc/openapi.json"}


async def document(server: Served) -> dict[str, Any]:
    found: dict[str, Any] = (await server.get("/openapi.json")).json()
    return found


async def test_it_has_the_seeds_title_licence_and_second_address(server: Served) -> None:
    found = await document(server)
    assert (found["info"]["title"], found["info"]["license"]["name"]) == ("Mistral.rs", "MIT")
    assert [tag["name"] for tag in found["tags"]] == ["Mistral.rs"]
    assert (await server.get("/api-doc/openapi.json")).json() == found


async def test_every_route_is_in_it_with_every_kind_of_answer(server: Served) -> None:
    paths = (await document(server))["paths"]
    assert set(paths) == {
        "/", "/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/models/{id}", "/v1/capabilities",
        "/v1/requests", "/v1/requests/{id}", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize",
        "/detokenize", "/apply-template", "/v1/lora_adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
        "/lora-adapters", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
    }  # fmt: skip
    for methods in paths.values():
        for method, described in methods.items():
            statuses = set(described["responses"])
            assert {"200", "401", "403", "500", "503"} <= statuses
            assert "422" not in statuses
            assert ("requestBody" in described) == (method == "post")
            if method == "post":
                assert {"400", "404", "413", "415"} <= statuses
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        responses = paths[path]["post"]["responses"]
        assert {"429", "499", "504"} <= set(responses)
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}


async def test_every_reference_leads_somewhere(server: Served) -> None:
    found = await document(server)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found)))
    assert named
    assert named <= set(found["components"]["schemas"])


async def test_bodies_are_described_by_what_reads_them(server: Served) -> None:
    schemas = (await document(server))["components"]["schemas"]
    for body in BODIES:
        if not issubclass(body, RootModel):  # a list
            assert set(schemas[body.__name__]["properties"]) >= _names(body)


def _names(body: type[BaseModel]) -> set[str]:
    return {name for name, field in body.model_fields.items() if field.validation_alias is None}


async def test_a_key_is_part_of_it_where_one_is_needed(engine: FakeEngine, server: Served) -> None:
    assert "security" not in await document(server)
    closed = Served(engine, ServerSettings(api_keys=("a key",)))
    found = (await closed.get("/openapi.json", headers={"authorization": "Bearer a key"})).json()
    assert found["security"] == [{"key": []}, {"x_api_key": []}]
    schemes = found["components"]["securitySchemes"]
    assert (schemes["key"]["scheme"], schemes["x_api_key"]["name"]) == ("bearer", "x-api-key")


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_its_pages_need_no_network(server: Served, page: str) -> None:
    response = await server.get(page)
    assert response.headers["content-type"].startswith("text/html")
    sources = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert sources
    for source in sources:
        assert source.startswith("/")
        assert (await server.get(source)).status_code == 200
