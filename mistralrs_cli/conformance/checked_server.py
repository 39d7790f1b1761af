"""A server that is checked: single HTTP exchanges, and the answers that several checks look at."""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any

from mistralrs.parsing import parse_nested
from mistralrs_cli.server_client.server_connection import Server
from mistralrs_cli.server_client.server_errors import UnreachableError, failure
from mistralrs_cli.server_client.sse_events import SseDecoder

TIMEOUT_S = 120.0
"""Seconds without a byte after which a check gives up."""
ANSWER_TOKENS = 12
_MAX_BODY = 16 << 20
DONE = b"[DONE]"

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
)


class Fault(Exception):
    """The server does something that breaks clients; the message says what."""


class NotChecked(Exception):
    """The check cannot be made with this server; the message says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the server."""

    status: int
    kind: str
    """The content type without parameters."""
    body: bytes

    def value(self) -> Any:
        """Returns the body's JSON value. Raises ``Fault``."""
        try:
            return parse_nested(json.loads, self.body)
        except ValueError:
            raise Fault(f"status {self.status} with {self.kind} that is no JSON") from None

    def answer(self) -> dict[str, Any]:
        """Returns the body of an answer, an object with status 200. Raises ``Fault``."""
        value = self.value()
        if self.status != 200:
            raise Fault(f"status {self.status}: {said(value)}")
        if not isinstance(value, dict):
            raise Fault("the body is no object")
        if value.get("error") is not None:
            raise Fault(f"status 200 with an error: {said(value)}")
        return value

    def chunks(self) -> list[dict[str, Any]]:
        """Returns the events of a stream without its end. Raises ``Fault``."""
        if self.status != 200:
            raise Fault(f"status {self.status}: {said(self.value())}")
        if self.kind != "text/event-stream":
            raise Fault(f"the stream's type is {self.kind}")
        found = []
        for data in self.events():
            if data == DONE:
                continue
            try:
                value = parse_nested(json.loads, data)
            except ValueError:
                raise Fault(f"an event is no JSON: {data[:60]!r}") from None
            if not isinstance(value, dict):
                raise Fault(f"an event is no object: {data[:60]!r}")
            found.append(value)
        if not found:
            raise Fault("the stream has no event")
        return found

    def events(self) -> list[bytes]:
        """Returns the data of all events."""
        return SseDecoder().feed(self.body + b"\n\n")


def said(value: object) -> str:
    """Returns the message of an error's body, or the beginning of the body."""
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") if isinstance(error, dict) else error
    return str(message if message is not None else value)[:200]


class CheckedServer:
    """A server and the answers that it gave; each question is asked once, when a check needs it first."""

    def __init__(self, server: Server, *, model: str | None) -> None:
        """``model``: the model to ask; None: the first of the server's list."""
        self._server = server
        self._model = model

    def get(self, path: str) -> Reply:
        """Asks for a path. Raises ``UnreachableError``."""
        return self._exchange("GET", path, None)

    def post(self, path: str, body: Mapping[str, object] | bytes) -> Reply:
        """Sends a body, JSON or bytes as they are. Raises ``UnreachableError``."""
        return self._exchange("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode())

    def chat(self, **more: object) -> Reply:
        """Asks a short question; ``more``: fields of the body, None: without the field."""
        body: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
        }
        return self.post(
            "/chat/completions", {name: value for name, value in (body | more).items() if value is not None}
        )

    @functools.cached_property
    def model(self) -> str:
        """The model to ask."""
        if self._model is not None:
            return self._model
        try:
            return str(self.models[0]["id"])
        except Fault:
            return "default"  # a server without a list may still answer, and that is another check

    @functools.cached_property
    def models(self) -> list[dict[str, Any]]:
        """The models of the server's list. Raises ``Fault``."""
        value = self.get("/models").answer()
        models = value.get("data")
        if not isinstance(models, list) or not models:
            raise Fault("no list of models in 'data'")
        if not all(isinstance(each, dict) and isinstance(each.get("id"), str) for each in models):
            raise Fault("a model has no id")
        return models

    @functools.cached_property
    def plain(self) -> Reply:
        """An answer in one piece."""
        return self.chat()

    @functools.cached_property
    def stream(self) -> Reply:
        """The same as a stream."""
        return self.chat(stream=True)

    @functools.cached_property
    def tool_call(self) -> Reply:
        """A tool call in one piece."""
        return self._call()

    @functools.cached_property
    def tool_stream(self) -> Reply:
        """A tool call as a stream."""
        return self._call(stream=True)

    def _call(self, **more: object) -> Reply:
        question = [{"role": "user", "content": "How is the weather in Rome? Use the tool."}]
        return self.chat(messages=question, tools=TOOLS, tool_choice="required", max_tokens=256, **more)

    def _exchange(self, method: str, path: str, body: bytes | None) -> Reply:
        address = self._server.address
        if address.is_tls:
            context = ssl.create_default_context()
            http: HTTPConnection = HTTPSConnection(address.host, address.port, timeout=TIMEOUT_S, context=context)
        else:
            http = HTTPConnection(address.host, address.port, timeout=TIMEOUT_S)
        headers = self._server.headers() | {"Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            http.request(method, address.path + path, body, headers)
            response = http.getresponse()
            return Reply(response.status, response.headers.get_content_type(), response.read(_MAX_BODY))
        except (OSError, HTTPException) as error:
            raise UnreachableError(failure(address, error), hint="is the server running?") from error
        finally:
            http.close()
