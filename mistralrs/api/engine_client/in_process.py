"""An engine of this process behind the protocol ``EngineClient``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.engine_client.heartbeat import HEARTBEAT_S, EngineHeartbeat, require_alive
from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters
from mistralrs.engine.events import AdaptersChosen

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.adapter_changes import AdapterChange
    from mistralrs.api.served_model import ServedModel
    from mistralrs.engine.config import Request
    from mistralrs.engine.engine import Engine
    from mistralrs.engine.events import Event
    from mistralrs.engine.stats import EngineStats
    from mistralrs.errors import EngineError


class InProcessEngine:
    """An engine of this process, for tests and comparisons. It is made on its event loop, and closed before that."""

    def __init__(self, engine: Engine, model: ServedModel, *, adapters: ModelAdapters | None = None) -> None:
        """Takes ``engine`` over, before its first request. ``adapters``: None: the model has none."""
        self._model = model
        self._adapters = adapters or ModelAdapters(engine)
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: list[tuple[AsyncStream, Event]] = []
        self._heartbeat = EngineHeartbeat()
        self._look()
        engine.after_step = self._flush

    @property
    def model(self) -> ServedModel:
        """As ``EngineClient`` says."""
        return replace(self._model, adapters=self._adapters.known())

    @property
    def fault(self) -> EngineError | None:
        """As ``EngineClient`` says."""
        return self._engine.fault

    @property
    def stalled(self) -> EngineError | None:
        """As ``EngineClient`` says."""
        return self._heartbeat.stall

    def _look(self) -> None:
        self._heartbeat.on_stats(self._engine.stats())
        self._timer = self._loop.call_later(HEARTBEAT_S, self._look)

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> AsyncStream:
        """As ``EngineClient`` says, but it waits for adapters that have to be placed, and raises their errors."""
        stream = AsyncStream(lambda: handle.cancel())
        handle = self._adapters.submit_to(partial(self._deliver, stream), request, adapters)
        return stream

    async def change_adapters(self, change: AdapterChange) -> None:
        """As ``EngineClient`` says."""
        require_alive(self.fault)
        await asyncio.to_thread(change.make, self._adapters)

    async def stats(self) -> EngineStats:
        """As ``EngineClient`` says."""
        require_alive(self.fault)
        return self._engine.stats()

    async def close(self) -> None:
        """As ``EngineClient`` says."""
        self._timer.cancel()
        await asyncio.to_thread(self._engine.close)

    def _deliver(self, stream: AsyncStream, event: Event) -> None:  # by the thread that delivers
        if isinstance(event, AdaptersChosen):  # it comes from ``submit``
            stream.put(event)
        else:
            self._events.append((stream, event))

    def _flush(self) -> None:  # by the thread that delivers
        if self._events:
            self._loop.call_soon_threadsafe(_deliver_all, self._events)
            self._events = []


def _deliver_all(events: list[tuple[AsyncStream, Event]]) -> None:
    for stream, event in events:
        stream.put(event)
