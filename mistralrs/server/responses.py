"""Answers as ASGI messages: JSON, errors, and streams of events that are kept alive."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mistralrs.server.errors import ErrorAnswer

PING = b": ping\n\n"
"""A comment, which every client of server-sent events ignores."""
_SLICE = 16
"""Objects that are made JSON in one go, such as embeddings; of numbers it is more."""
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def to_json(value: object) -> bytes:
    """Returns JSON of one line; a number that JSON cannot represent is a defect and raises ``ValueError``."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def to_json_in_slices(body: Mapping[str, object]) -> bytes:
    """As ``to_json``, for another thread than the event loop's: a long list in it is made bit by bit, so that the loop
    never waits for all of it.
    """
    return b"{%b}" % b",".join(b"%b:%b" % (to_json(key), _slices(value)) for key, value in body.items())


def _slices(value: object) -> bytes:
    if not isinstance(value, list) or len(value) <= _SLICE:
        return to_json(value)
    step = _SLICE if isinstance(value[0], dict) else _SLICE << 9
    return b"[%b]" % b",".join(to_json(value[start : start + step])[1:-1] for start in range(0, len(value), step))


class JsonResponse(Response):
    """A value as JSON, or bytes that are JSON already."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return content if isinstance(content, bytes) else to_json(content)


class EventStream(StreamingResponse):
    """Server-sent events, with ``ping`` whenever nothing was sent for ``keep_alive_s`` seconds.

    ``close`` is called at the end, also if the client went away before the first event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        headers: Mapping[str, str],
        keep_alive_s: float,
        close: Callable[[], None],
        ping: bytes = PING,
    ) -> None:
        super().__init__(events, headers={**headers, **STREAM_HEADERS})
        self._events = events
        self._close = close
        self._ping_event = ping
        self._keep_alive_s = keep_alive_s
        self._sent_at = time.monotonic()
        self._sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pinging = asyncio.create_task(self._ping(send))
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await self._send(send, event)
                    # Events that are ready and a socket that takes them are no pause. In this one a connection is
                    # lost that is gone, before more is written to it.
                    await asyncio.sleep(0)
        finally:
            pinging.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, event: bytes) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": event, "more_body": True})
        self._sending = False
        self._sent_at = time.monotonic()

    async def _ping(self, send: Send) -> None:
        while True:
            silence = time.monotonic() - self._sent_at
            if silence < self._keep_alive_s:
                await asyncio.sleep(self._keep_alive_s - silence)
            elif self._sending:  # the client does not read
                await asyncio.sleep(self._keep_alive_s)
            else:
                await self._send(send, self._ping_event)


async def send_error(send: Send, answer: ErrorAnswer) -> None:
    """Sends a whole answer."""
    body = to_json(answer.body)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **answer.headers}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": False})
