"""An engine in a process of its own behind the protocol ``EngineClient``: the server's side of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.engine_client.engine_connection import CLOSING_S, EngineLink
from mistralrs.api.engine_client.engine_messages import (
    AdaptersChanged,
    AskStats,
    Cancel,
    ChangeAdapters,
    Died,
    Load,
    Loaded,
    Logged,
    NotLoaded,
    Progressed,
    Stats,
    Step,
    Submit,
    unpack,
)
from mistralrs.api.engine_client.heartbeat import EngineHeartbeat, require_alive, stalled
from mistralrs.api.engine_client.open_stream import OpenStream
from mistralrs.engine.admission import check_queue, check_request, fit_prompt
from mistralrs.engine.events import End, Event, Failed, Finished
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.errors import DeadlineError, EngineDeadError, EngineError, LoadError, RequestError
from mistralrs.text.worker import workers

if TYPE_CHECKING:
    from mistralrs.api.load_options import LoadOptions, ModelSource
    from mistralrs.api.loaded_adapters.adapter_changes import AdapterChange
    from mistralrs.api.served_model import ServedModel
    from mistralrs.engine.config import EngineConfig, Request
    from mistralrs.engine.stats import EngineStats
    from mistralrs.progress import Progress

logger = logging.getLogger(__name__)

T = TypeVar("T")

STATS_S = 2.0
"""Seconds to wait for the engine's statistics."""
GRACE_S = 1.0
"""Seconds to wait after a request's deadline for the engine, which ends the request itself."""
CANCEL_S = 2.0
"""Seconds to wait for the end of a cancelled request; the engine needs one step."""


class RemoteEngine(ProcessBound):
    """An engine in a process of its own, which ends when this object is closed and when this process ends.

    A fork of this process has the same connection and must not use it: every method raises EngineError there, except
    ``close``, which does nothing.

    The open streams end with Failed when the process ends, and ``fault`` is the reason. While the process is stalled,
    deadlines and cancellation still end streams, a little later than the engine would.
    """

    model: ServedModel

    def __init__(self, progress: Progress | None) -> None:
        """Called only by ``start``."""
        super().__init__()
        self.fault: EngineError | None = None
        self._progress = progress
        self._link: EngineLink
        self._config: EngineConfig
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._numbers = itertools.count()
        self._open: dict[int, OpenStream] = {}
        self._heartbeat = EngineHeartbeat()
        self._watching: asyncio.Task[None] | None = None
        self._asking: deque[asyncio.Future[EngineStats]] = deque()
        self._changing: dict[int, asyncio.Future[None]] = {}
        self._closing = False

    @classmethod
    async def start(
        cls, source: ModelSource, options: LoadOptions, *, progress: Progress | None = None
    ) -> RemoteEngine:
        """Starts the process and loads the model in it. Raises LoadError and UsageError.

        On Linux the process does not outlive the thread that calls this.
        """
        engine = cls(progress)
        engine._link = await EngineLink.open(engine._receive, engine._on_disconnect)
        try:
            engine._link.send(Load(source, options, logger.getEffectiveLevel()))
            await engine._loaded
        except BaseException:
            engine._closing = True
            engine._link.kill()
            await asyncio.shield(engine._ended)
            raise
        watch = engine._heartbeat.watch(engine._ask, lambda: engine.fault is not None)
        engine._watching = engine._loop.create_task(watch)
        return engine

    @property
    def stalled(self) -> EngineError | None:
        """As ``EngineClient`` says."""
        return self._heartbeat.stall

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> AsyncStream:
        """As ``EngineClient`` says. A request that the engine would refuse is refused here, before anything is sent."""
        self._require_process()
        require_alive(self.fault)
        if adapters is not None:
            self.model.adapters.check(adapters)
        check_request(request, self.model.vocab_size, max_adapters=self._config.max_adapters)
        if request.hooks is not None:
            message = "logits processors and stopping rules work only with an engine in their own process"
            raise RequestError(message, hint="use a Runner", param="hooks")
        if request.wants_scalings:
            self.model.adapters.require_scalings()
        spell = self.model.tokenizer.token_text
        prompt = fit_prompt(request, self.model.max_len, self.model.vocab_size, spell=spell)
        check_queue(len(self._open), self._config)
        fitted = replace(request, prompt=tuple(prompt), truncate=False)
        number = next(self._numbers)
        stream = AsyncStream(partial(self._cancel, number))
        self._open[number] = OpenStream(stream, fitted)
        self._link.send(Submit(number, fitted, adapters))
        if fitted.deadline_s is not None:
            self._end_after(fitted.deadline_s + GRACE_S, number, DeadlineError())
        return stream

    async def stats(self) -> EngineStats:
        """As ``EngineClient`` says; an engine that does not answer in time counts as stalled."""
        self._require_process()
        require_alive(self.fault)
        if self.stalled is not None:
            raise self.stalled
        try:
            async with asyncio.timeout(STATS_S):
                return await self._ask()
        except TimeoutError:
            raise stalled(f"the engine did not answer within {STATS_S:g} s") from None

    async def change_adapters(self, change: AdapterChange) -> None:
        """As ``EngineClient`` says."""
        self._require_process()
        require_alive(self.fault)
        number = next(self._numbers)
        changed: asyncio.Future[None] = self._loop.create_future()
        self._changing[number] = changed
        self._link.send(ChangeAdapters(number, change))
        await changed

    async def close(self) -> None:
        """As ``EngineClient`` says; a process that does not end in time is killed."""
        if self._is_forked:
            return
        if self.fault is None:
            self._closing = True
            self.fault = EngineDeadError("the engine is closed", hint="start it again")
            self._link.hang_up()
        try:
            async with asyncio.timeout(CLOSING_S):
                await asyncio.shield(self._ended)
        except TimeoutError:
            logger.warning("the engine's process did not end within %.0f s and is killed", CLOSING_S)
            self._link.kill()
            await asyncio.shield(self._ended)

    def _ask(self) -> asyncio.Future[EngineStats]:
        answer: asyncio.Future[EngineStats] = self._loop.create_future()
        self._asking.append(answer)
        self._link.send(AskStats())
        return answer

    def _cancel(self, number: int) -> None:
        if self.fault is None and not self._is_forked:
            self._link.send(Cancel(number))
            self._end_after(CANCEL_S, number, None)

    def _end_after(self, seconds: float, number: int, error: EngineError | None) -> None:
        """Sets a timer that ends a stream unless the engine ends it first; ``error`` None: as cancelled."""
        entry = self._open[number]
        entry.stop_timer()
        entry.timer = self._loop.call_later(seconds, self._end, number, error)

    def _end(self, number: int, error: EngineError | None) -> None:
        entry = self._open.pop(number)
        usage = entry.usage()
        if error is None:
            entry.stream.put(Finished("cancelled", usage))
            return
        entry.stream.put(Failed(error, usage))
        if self.fault is None:
            self._link.send(Cancel(number))  # the engine reads it when it goes on

    def _receive(self, message: object) -> None:
        self._heartbeat.on_message()
        match message:
            case Step(events):
                for packed in events:
                    self._deliver(*unpack(packed))
            case AdaptersChanged(number, adapters, error):
                self.model = replace(self.model, adapters=adapters)
                _resolve_future(self._changing.pop(number), error)
            case Stats(stats):
                _resolve_future(self._asking.popleft(), stats)
            case Logged(record):
                target = logging.getLogger(record.name)
                if target.isEnabledFor(record.levelno):
                    target.handle(record)
            case Progressed(what, done, total):
                if self._progress is not None:
                    self._progress(what, done, total)
            case Loaded(model, config):
                self.model, self._config = model, config
                workers.start()  # the first request needs it
                _resolve_future(self._loaded, None)
            case NotLoaded(error):
                _resolve_future(self._loaded, error)
            case Died(fault):
                self.fault = fault
            case _:
                raise TypeError(f"the engine's process sent {message!r}")

    def _deliver(self, number: int, event: Event) -> None:
        entry = self._open.get(number)
        if entry is None:  # the timer has ended the stream already
            return
        if isinstance(event, End):
            entry.stop_timer()
            del self._open[number]
        entry.stream.put(event)

    def _on_disconnect(self) -> None:
        """Called when the process has closed the connection: it is dead or about to end."""
        if self._watching is not None:
            self._watching.cancel()
        is_known = self.fault is not None
        self.fault = self.fault or EngineDeadError("the engine's process has ended", hint="start it again")
        self._exit_task = self._loop.create_task(self._on_exit(is_known=is_known))

    async def _on_exit(self, *, is_known: bool) -> None:
        """Waits for the end of the process, logs its cause unless that is known, and ends the open streams."""
        code = await self._link.exit_code()
        killed = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else ""
        how = killed or f"ended with exit code {code}"
        fault = self.fault
        if fault is None or not is_known:
            fault = self.fault = EngineDeadError(f"the engine's process {how}", hint="start it again")
        if not self._loaded.done():
            hint = "does the model fit into memory?" if code == -signal.SIGKILL else None
            self._loaded.set_exception(LoadError(f"{fault.message} while it loaded the model", hint=hint))
        elif not self._closing:
            logger.error("%s", fault.message)
        for entry in self._open.values():
            entry.stop_timer()
            entry.stream.put(Finished("cancelled", entry.usage()) if self._closing else Failed(fault, entry.usage()))
        self._open.clear()
        for answer in self._asking:
            _resolve_future(answer, fault)
        self._asking.clear()
        for changed in self._changing.values():
            _resolve_future(changed, fault)
        self._changing.clear()
        self._ended.set_result(None)


def _resolve_future(future: asyncio.Future[T], result: T | Exception) -> None:
    """Sets the future's result or error; does nothing if it has one already, or was cancelled."""
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
