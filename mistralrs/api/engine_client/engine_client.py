"""The protocol between a server and an engine: submit a request, read its events, learn that the engine has ended.

``in_process`` and ``remote`` implement it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mistralrs.api.engine_client.async_stream import AsyncStream
    from mistralrs.api.loaded_adapters.adapter_changes import AdapterChange
    from mistralrs.api.served_model import ServedModel
    from mistralrs.engine.config import Request
    from mistralrs.engine.stats import EngineStats
    from mistralrs.errors import EngineError


class EngineClient(Protocol):
    """An engine as a server sees it, used on one event loop."""

    @property
    def model(self) -> ServedModel:
        """The facts about the served model; known once the engine is there."""
        ...

    @property
    def fault(self) -> EngineError | None:
        """The error that ended the engine; None while it runs."""

    @property
    def stalled(self) -> EngineError | None:
        """The error of an engine that runs but is stalled, and may go on; None while it makes progress."""

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> AsyncStream:
        """Queues a request on which adapters act: names and weights; None: those that act by default.

        Raises RequestError and ContextLengthError for it, QueueFullError when too many wait, EngineError if the engine
        has ended. An adapter that cannot be placed ends the stream with Failed.
        """

    async def stats(self) -> EngineStats:
        """Returns a snapshot. Raises EngineError if the engine has ended, or does not answer in time."""

    async def change_adapters(self, change: AdapterChange) -> None:
        """Changes the adapters; ``model`` knows the new ones when it returns, and other requests go on meanwhile.

        Raises RequestError for a change that cannot be made, EngineError if the engine has ended.
        """

    async def close(self) -> None:
        """Ends the engine; open streams end with ``Finished("cancelled")``. Idempotent."""
