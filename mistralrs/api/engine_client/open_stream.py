"""A stream that has not ended, as the server's side of an engine keeps it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistralrs.engine.events import Usage

if TYPE_CHECKING:
    from mistralrs.api.engine_client.async_stream import AsyncStream
    from mistralrs.engine.config import Request


@dataclass(slots=True)
class OpenStream:
    """A stream, its request, and a timer for an engine that is stalled."""

    stream: AsyncStream
    request: Request
    timer: asyncio.TimerHandle | None = None
    """The timer that ends the stream if the engine does not."""

    def usage(self) -> Usage:
        """Returns the usage as far as it is known without the engine."""
        request = self.request
        return Usage(len(request.prompt), 0, self.stream.num_tokens, 0.0, 0.0, 0.0, request.sampling.seed)

    def stop_timer(self) -> None:
        """Stops the timer, if there is one."""
        if self.timer is not None:
            self.timer.cancel()
