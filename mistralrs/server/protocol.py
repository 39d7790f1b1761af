"""The connections: uvicorn's, with limits for clients that send or read slowly, or nothing at all.

Refusals made here have the same shape as the application's.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mistralrs.errors import EngineError, MistralrsError, RequestError
from mistralrs.server.errors import answer_to
from mistralrs.server.middleware import AUTHORITY
from mistralrs.server.responses import send_error
from mistralrs.server.settings import ServerSettings

if sys.platform != "win32":
    import resource

OWN_FILES = 64
"""Files that the process has open or may need."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. A request must be complete after ``READ_S`` seconds, with at most ``HEAD_BYTES`` that are not its
    body; a client that takes nothing for ``WRITE_S`` seconds is cut off. Where there are ``CONNECTIONS`` already, the
    one that has been without a request for longest is closed, and if all have one, the new one is refused.

    The limits are attributes of the class, because uvicorn makes the instances.
    """

    READ_S = 30.0
    WRITE_S = 60.0
    HEAD_BYTES = 64 * 1024
    CONNECTIONS = 1024

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._idle_since = self.loop.time()
        self._head_bytes = 0  # of the current message, all that is not its body: its head, trailers, sizes of chunks
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.CONNECTIONS and not self._make_room():
            self.app = _refuse_connection
        super().connection_made(transport)
        self._expect_message()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading_timer()
        self._stop_writing_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > self.HEAD_BYTES and not self.transport.is_closing():
            self._refuse(RequestError("the head of the request is too long", code="request_too_large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_message()

    def on_headers_complete(self) -> None:
        scheme, separator, rest = self.url.partition(b"://")
        if separator and b"/" not in scheme:
            self.scope[AUTHORITY] = re.split(rb"[/?#]", rest, maxsplit=1)[0].decode("latin-1")  # type: ignore[literal-required]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_bytes = 0
        self._stop_reading_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self.transport.is_closing():  # closing waits until all is sent
            self._expect_reader()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_writing_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuses bytes that the parser cannot read, unless an answer has begun."""
        self._refuse(RequestError("this is no HTTP request that this server understands", code="invalid_http"))

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _has_request(self) -> bool:
        """Returns whether there is a whole request whose answer is not complete."""
        return bool(self.pipeline) or (self._is_answering and not self.cycle.more_body)

    def _make_room(self) -> bool:
        idle = [each for each in self.connections if isinstance(each, GuardedProtocol) and not each._has_request]
        if idle:
            oldest = min(idle, key=lambda each: each._idle_since)
            self.connections.discard(oldest)  # it leaves a little later, and others may come until then
            oldest.transport.abort()
        return bool(idle)

    def _expect_message(self) -> None:
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.READ_S, self._message_is_late)

    def _message_is_late(self) -> None:
        self._read_timer = None
        if self.flow.read_paused or self.pipeline:  # the request waits for the answer to the one before
            self._expect_message()
        elif self._head_bytes or self._is_answering:
            self._refuse(RequestError(f"the request was not complete after {self.READ_S:g} s", code="request_timeout"))
        else:
            self.transport.close()

    def _expect_reader(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.WRITE_S, self.transport.abort)

    def _stop_reading_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _stop_writing_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self, error: MistralrsError) -> None:
        """Ends the connection, with an answer unless another one has begun."""
        if not self.pipeline and not (self._is_answering and self.cycle.response_started):
            answer = answer_to(error)
            body = json.dumps(answer.body).encode()
            head = [*self.server_state.default_headers, (b"content-type", b"application/json")]
            head += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            lines = [name + b": " + value + b"\r\n" for name, value in head]
            self.transport.write(STATUS_LINE[answer.status] + b"".join(lines) + b"\r\n" + body)
        self.transport.close()
        self._expect_reader()


def protocol_for(settings: ServerSettings) -> type[GuardedProtocol]:
    """Returns the protocol with the limits of ``settings``."""
    limits = {"READ_S": settings.read_timeout, "WRITE_S": settings.write_timeout}
    connections = min(settings.max_connections, _spare_files())
    return type("Protocol", (GuardedProtocol,), {**limits, "CONNECTIONS": connections})


def _spare_files() -> int:
    """Returns how many files the system lets this process open beside those that it needs itself."""
    if sys.platform == "win32":
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft - OWN_FILES, 1)


async def _refuse_connection(scope: Any, receive: Any, send: Any) -> None:
    error = EngineError("the server has as many connections as it takes", code="too_many_connections")
    await send_error(send, answer_to(error))
