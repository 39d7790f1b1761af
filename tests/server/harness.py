"""A server that answers without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from mistralrs.api.engine_client.engine_client import EngineClient
from mistralrs.server.app import create_app
from mistralrs.server.log import RequestLog
from mistralrs.server.service import Service
from mistralrs.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
QUESTION: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


class Served:
    """Yields an application and a client of it. ``engine`` None: the model is still being loaded."""

    def __init__(self, engine: EngineClient | None, settings: ServerSettings | None = None) -> None:
        settings = settings or ServerSettings()
        self.log_path = settings.log
        self.log = (
            RequestLog(settings.log, bodies=settings.log_bodies, secrets=settings.api_keys) if settings.log else None
        )
        self.service = Service(settings, self.log)
        if engine is not None:
            self.service.open(engine)
        transport = httpx.ASGITransport(create_app(self.service))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost:1234")

    async def get(self, path: str, **keywords: Any) -> httpx.Response:
        return await self.client.get(path, **keywords)

    async def post(self, path: str, body: object, **keywords: Any) -> httpx.Response:
        return await self.client.post(path, json=body, **keywords)

    async def chat(self, **more: object) -> httpx.Response:
        return await self.post(CHAT, {**QUESTION, **more})

    def logged(self) -> list[dict[str, Any]]:
        """Returns the lines of the log, and closes it."""
        assert self.log is not None
        assert self.log_path is not None
        self.log.close()
        return [json.loads(line) for line in Path(self.log_path).read_text().splitlines()]


def events(response: httpx.Response) -> list[Any]:
    """Returns the data of a stream's events; the last, if it is no JSON, as text."""
    data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(each) if each.startswith("{") else each for each in data]


def fault(response: httpx.Response) -> dict[str, Any]:
    """Returns the fields of an error, whose body has nothing else but the partial answer."""
    body = response.json()
    assert set(body) <= {"error", "partial_response"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition is true, a minute at most."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)
