"""The events of one request on an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from mistralrs.engine.events import Delta, End, Event
from mistralrs.engine.process_bound import ProcessBound


class AsyncStream(ProcessBound):
    """One choice's events on an event loop: any number of others, then exactly one Finished or Failed.

    It is used on that loop alone; one task at a time may iterate.
    """

    BACKLOG = 256
    """Unread events beyond which Deltas are joined, so that a slow reader costs little more memory than its text."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        super().__init__()
        self.cancelled = False
        """The caller has cancelled; the engine may not have processed that yet."""
        self._on_cancel = on_cancel
        self._unread: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        self.num_tokens = 0
        """Tokens of all Deltas so far, read or not."""
        self._complete = False  # the last event has come
        self._read = False  # the last event was read

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """Returns the next event. Cancelling the wait for it loses nothing."""
        self._require_process()
        if self._read:
            raise StopAsyncIteration
        while not self._unread:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        event = self._unread.popleft()
        self._read = isinstance(event, End)
        return event

    def cancel(self) -> None:
        """Ends the stream within one step with ``Finished("cancelled")``; does nothing if it has ended."""
        if not self.cancelled:
            self.cancelled = True
            if not self._complete:
                self._on_cancel()

    def put(self, event: Event) -> None:
        """Adds an event. Called only by the engine."""
        if len(self._unread) >= self.BACKLOG:
            self._merge()
        self._unread.append(event)
        if isinstance(event, Delta):
            self.num_tokens += len(event.tokens)
        else:
            self._complete = isinstance(event, End)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _merge(self) -> None:
        deltas = [event for event in self._unread if isinstance(event, Delta)]
        others = [event for event in self._unread if not isinstance(event, Delta)]  # come before every Delta
        self._unread = deque([*others, Delta.joined(deltas)])
