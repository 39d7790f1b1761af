"""The requests that are being answered: their cost until now, and a way to end one from outside."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.engine.events import Delta, Embedding, Event, Failed, Finished
from mistralrs.errors import EngineError, RequestError
from mistralrs.server.metrics import Metrics


@dataclass(slots=True, eq=False)
class InflightRequest:
    """One request of a client; with several choices it has as many streams."""

    id: str
    """The id in the answer."""
    request_id: str
    """The header x-request-id."""
    endpoint: str
    key_id: str
    """The key that the request came with."""
    started: float = field(default_factory=time.monotonic)
    streams: tuple[WatchedStream, ...] = ()
    stopped: EngineError | None = None
    """The reason why the server ended it, if it did."""

    @property
    def tokens(self) -> int:
        """Tokens drawn until now, of all choices."""
        return sum(stream.num_tokens for stream in self.streams)

    def cancel(self) -> None:
        for stream in self.streams:
            stream.cancel()

    def stop(self, error: EngineError) -> None:
        """Ends the request with an error that its client reads."""
        if self.stopped is None:
            self.stopped = error
        self.cancel()


class WatchedStream(AsyncStream):
    """A stream that counts its tokens, and turns an end that the server brought about into an error."""

    def __init__(self, stream: AsyncStream, live: InflightRequest, metrics: Metrics) -> None:
        super().__init__(stream.cancel)
        self._stream = stream
        self._live = live
        self._metrics = metrics
        self._last: float | None = None  # when the last token came
        self.begun = False
        """An event arrived, and therefore the prompt has been computed."""
        self.ended = False

    async def __anext__(self) -> Event:
        event = await self._stream.__anext__()
        if isinstance(event, Delta):
            self._count()
        elif isinstance(event, Embedding):
            self.begun = True
        elif isinstance(event, Finished | Failed):
            self.ended = True
            if isinstance(event, Finished) and event.reason == "cancelled" and self._live.stopped is not None:
                return Failed(self._live.stopped, event.usage)
        return event

    def _count(self) -> None:
        self.num_tokens = self._stream.num_tokens
        now = time.monotonic()
        if self._last is None:
            self.begun = True
            self._metrics.first_token.observe(now - self._live.started)
        else:
            self._metrics.inter_token.observe(now - self._last)
        self._last = now


class InflightRequests:
    """All requests under way. Must be used on one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._requests: dict[str, InflightRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def open(self, live: InflightRequest, streams: Iterable[AsyncStream]) -> None:
        """Registers a request and watches its streams."""
        live.streams = tuple(WatchedStream(stream, live, self._metrics) for stream in streams)
        self._requests[live.id] = live
        self._metrics.open_requests.set(len(self))

    def close(self, live: InflightRequest) -> bool:
        """Cancels the rest of a request; returns whether anything was left. Idempotent."""
        if self._requests.pop(live.id, None) is None:
            return False
        self._metrics.open_requests.set(len(self))
        live.cancel()
        is_cut = live.stopped is not None or not all(stream.ended for stream in live.streams)
        if is_cut:
            self._metrics.cancelled.inc()
        return is_cut

    def of(self, identity: str) -> list[InflightRequest]:
        """Returns the requests that came with the same key, the oldest first."""
        return [live for live in self._requests.values() if live.key_id == identity]

    def find(self, id: str, identity: str) -> InflightRequest:
        """Returns a request by the answer's id or the request's; another key's request is not found.

        Raises ``RequestError``.
        """
        for live in self.of(identity):
            if id in (live.id, live.request_id):
                return live
        raise RequestError(
            "there is no such request under way", hint="GET /v1/requests lists them", code="request_not_found"
        )

    def states(self, waiting: float) -> dict[str, str]:
        """Returns ``queued``, ``prefill`` or ``decode`` by id, if the engine has that many streams waiting.

        The engine takes streams in order of arrival, so the youngest are those that wait.
        """
        states = {}
        for live in reversed(self._requests.values()):
            silent = sum(1 for stream in live.streams if not stream.begun)
            if silent < len(live.streams):
                states[live.id] = "decode"
            elif waiting > 0:
                states[live.id] = "queued"
            else:
                states[live.id] = "prefill"
            waiting -= silent
        return states

    def stop_all(self, error: EngineError) -> None:
        for live in list(self._requests.values()):
            live.stop(error)
