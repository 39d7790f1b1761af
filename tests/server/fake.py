"""An engine client that plays a test's script: events, waits, refusals, and its own death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.loaded_adapters.adapter_changes import AdapterChange
from mistralrs.api.served_model import ServedModel
from mistralrs.engine.config import Request
from mistralrs.engine.events import Delta, Embedding, Event, Failed, Finished, Usage
from mistralrs.engine.stats import EngineStats
from mistralrs.errors import EngineDeadError, EngineError, MistralrsError

Script = Callable[[Request], Iterable[Event | float]]
"""The script of a request: events, and seconds to wait between them."""


def usage(request: Request, completion_tokens: int = 2) -> Usage:
    return Usage(len(request.prompt), 0, completion_tokens, 0.5, 0.25, 0.5, request.sampling.seed)


def hello(request: Request) -> Iterable[Event | float]:
    """Two words, or a vector if one is asked for."""
    if request.pooling is not None:
        yield Embedding((0.6, 0.8))
    else:
        yield Delta("Hello", (11,), ())
        yield Delta(" world", (12,), ())
    yield Finished("stop", usage(request))


def endless(request: Request) -> Iterable[Event | float]:
    """Goes on until it is cancelled."""
    while True:
        yield Delta("x", (13,), ())
        yield 0.01


def silent(request: Request) -> Iterable[Event | float]:
    """Computes a prompt for ever."""
    yield 1e6


def broken(request: Request) -> Iterable[Event | float]:
    """Fails in the middle of its answer."""
    yield Delta("Hel", (11,), ())
    yield Failed(EngineError("the model failed"), usage(request, 1))


class FakeEngine:
    """One loop's engine. ``script`` and ``refusal`` may be changed at any time."""

    def __init__(self, model: ServedModel, script: Script = hello) -> None:
        self.model = model
        self.script = script
        self.refusal: MistralrsError | None = None
        """The error that ``submit`` raises."""
        self.fault: EngineError | None = None
        self.stalled: EngineError | None = None
        self.submitted: list[Request] = []
        self.chosen: list[Mapping[str, float] | None] = []
        """The adapters of each request that was submitted."""
        self.changes: list[AdapterChange] = []
        self.num_cancelled = 0
        self.is_closed = False
        self.waiting = 0
        self._playing: dict[asyncio.Task[None], AsyncStream] = {}

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> AsyncStream:
        if self.fault or self.refusal:
            raise self.fault or self.refusal or AssertionError
        self.submitted.append(request)
        self.chosen.append(adapters)
        stopped = asyncio.Event()
        stream = AsyncStream(stopped.set)
        task = asyncio.create_task(self._play(request, stream, stopped))
        self._playing[task] = stream
        task.add_done_callback(lambda task: self._playing.pop(task, None))
        return stream

    async def change_adapters(self, change: AdapterChange) -> None:
        if self.fault or self.refusal:
            raise self.fault or self.refusal or AssertionError
        self.changes.append(change)

    async def stats(self) -> EngineStats:
        if self.fault or self.stalled:
            raise self.fault or self.stalled or AssertionError
        running = len(self._playing) - self.waiting
        return EngineStats(
            running=running,
            waiting=self.waiting,
            num_blocks=64,
            free_blocks=60,
            cached_blocks=3,
            prompt_tokens=100,
            cached_tokens=40,
            completion_tokens=50,
            drafted_tokens=30,
            accepted_tokens=20,
            steps=70,
            preemptions=1,
        )

    async def close(self) -> None:
        self.is_closed = True
        for stream in list(self._playing.values()):
            stream.cancel()
        await asyncio.gather(*self._playing)

    def die(self, message: str = "the engine died") -> None:
        """Ends every stream with a failure, as a real one does."""
        self.fault = EngineDeadError(message)
        for task, stream in list(self._playing.items()):
            task.cancel()
            stream.put(Failed(self.fault, Usage(0, 0, 0, 0.0, 0.0, 0.0, 0)))

    @property
    def num_playing(self) -> int:
        return len(self._playing)

    async def _play(self, request: Request, stream: AsyncStream, stopped: asyncio.Event) -> None:
        for step in self.script(request):
            if isinstance(step, int | float):
                try:
                    await asyncio.wait_for(stopped.wait(), step)
                except TimeoutError:
                    continue
            if stopped.is_set():
                self.num_cancelled += 1
                stream.put(Finished("cancelled", usage(request)))
                return
            assert not isinstance(step, int | float)
            stream.put(step)
            await asyncio.sleep(0)
