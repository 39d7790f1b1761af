"""The delivery of events, beside the steps where a processor is free for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue


class Delivery:
    """Makes the calls that deliver events, in their order. The engine's thread adds them.

    A call that raises hinders no other one.
    """

    def __init__(
        self, after_batch: Callable[[], None], on_error: Callable[[Exception], None], *, beside_steps: bool
    ) -> None:
        """``after_batch``: called behind the calls of each batch, and once more at the end. ``on_error``: gets the
        errors of all calls. ``beside_steps``: a thread of its own makes the calls, and no step waits for them;
        otherwise the engine's thread makes them between two steps."""
        self._after_batch = after_batch
        self._on_error = on_error
        self._calls: list[Callable[[], None]] = []
        self._batches: SimpleQueue[list[Callable[[], None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if beside_steps:
            self._thread = threading.Thread(target=self._run, name="mistralrs-delivery", daemon=True)
            self._thread.start()

    def add(self, call: Callable[[], None]) -> None:
        """Adds a call to the next batch."""
        self._calls.append(call)

    def flush(self) -> None:
        """Makes the calls since the last time, as one batch, or hands them to the thread."""
        if not self._calls:
            return
        calls, self._calls = self._calls, []
        if self._thread is None:
            self._make_batch(calls)
        else:
            self._batches.put(calls)

    def close(self) -> None:
        """Ends the delivery once all calls are made. Does not wait for the thread."""
        self.flush()
        if self._thread is None:
            self._make(self._after_batch)
        else:
            self._batches.put(None)

    def join(self) -> None:
        """Waits until the thread has ended."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (calls := self._batches.get()) is not None:
            self._make_batch(calls)
        self._make(self._after_batch)

    def _make_batch(self, calls: Iterable[Callable[[], None]]) -> None:
        for call in calls:
            self._make(call)
        self._make(self._after_batch)

    def _make(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # the engine ends with it
            self._on_error(error)
