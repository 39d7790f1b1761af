"""The requests that are being answered: what they cost so far, and how one is ended from outside.

Knows the streams of an engine client and the keys' identities; does not know what an answer looks like.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from mistralrs.api.engine_client.engine_client import AsyncStream
from mistralrs.engine.events import Delta, Embedding, Event, Failed, Finished
from mistralrs.errors import EngineError, RequestError
from mistralrs.server.metrics import Metrics


@dataclass(slots=True, eq=False)
class InflightRequest:
    """One request of a client; with several choices it has as many streams."""

    id: str
    """As in the answer."""
    request_id: str
    """As in the header x-request-id."""
    endpoint: str
    key_id: str
    """Of the key it came with."""
    started: float = field(default_factory=time.monotonic)
    streams: tuple[WatchedStream, ...] = ()
    stopped: EngineError | None = None
    """Why the server ended it, if it did."""

    @property
    def tokens(self) -> int:
        """Drawn so far, of all choices."""
        return sum(stream.num_tokens for stream in self.streams)

    def cancel(self) -> None:
        for stream in self.streams:
            stream.cancel()

    def stop(self, error: EngineError) -> None:
        """Ends it with an error that its client gets to read."""
        if self.stopped is None:
            self.stopped = error
        self.cancel()


class WatchedStream(AsyncStream):
    """A stream that counts what passes, and turns an end that the server brought about into an error."""

    def __init__(self, stream: AsyncStream, live: InflightRequest, metrics: Metrics) -> None:
        super().__init__(stream.cancel)
        self._stream = stream
        self._live = live
        self._metrics = metrics
        self._last: float | None = None  # when the last token came
        self.begun = False
        """Something came, so its prompt has been computed."""
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
    """All of them. To be used on one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._requests: dict[str, InflightRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def open(self, live: InflightRequest, streams: Iterable[AsyncStream]) -> None:
        """Takes note of a request and watches its streams."""
        live.streams = tuple(WatchedStream(stream, live, self._metrics) for stream in streams)
        self._requests[live.id] = live
        self._metrics.open_requests.set(len(self))

    def close(self, live: InflightRequest) -> bool:
        """Ends what is left of it; True if something was. Idempotent."""
        if self._requests.pop(live.id, None) is None:
            return False
        self._metrics.open_requests.set(len(self))
        live.cancel()
        is_cut = live.stopped is not None or not all(stream.ended for stream in live.streams)
        if is_cut:
            self._metrics.cancelled.inc()
        return is_cut

    def of(self, identity: str) -> list[InflightRequest]:
        """Those that came with the same key, the oldest first."""
        return [live for live in self._requests.values() if live.key_id == identity]

    def find(self, id: str, identity: str) -> InflightRequest:
        """By the answer's id, or the request's; another key's is as little there as none. Raises ``RequestError``."""
        for live in self.of(identity):
            if id in (live.id, live.request_id):
                return live
        raise RequestError(
            "there is no such request under way", hint="GET /v1/requests lists them", code="request_not_found"
        )

    def states(self, waiting: float) -> dict[str, str]:
        """``queued``, ``prefill`` or ``decode`` by id, where the engine has so many streams waiting.

        It takes them in the order in which they came, so that the youngest are those that wait.
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
