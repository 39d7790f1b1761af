"""The engine's own process: loads a model, serves the parent's requests, and ends with the parent.

``engine_connection`` runs it with the number of an inherited socket. It writes no log of its own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from mistralrs.adapters.adapter_slots import AcquiredAdapters
from mistralrs.api.engine_client.engine_channel import Channel, LogRelay, words_of
from mistralrs.api.engine_client.engine_messages import (
    AdaptersChanged,
    AskStats,
    Cancel,
    ChangeAdapters,
    Died,
    Load,
    Loaded,
    NotLoaded,
    PackedEvent,
    Progressed,
    Stats,
    Step,
    Submit,
    pack,
)
from mistralrs.api.loaded_adapters.adapter_changes import AdapterChange
from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters, chosen_event
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import End, Event, Failed, Finished, Handle, Usage
from mistralrs.errors import EngineDeadError, EngineError, LoadError, MistralrsError
from mistralrs.process import open_standard_descriptors
from mistralrs.text.worker import workers

logger = logging.getLogger("mistralrs.api.engine_client.engine_server")  # this module runs as __main__

LOOKUPS = 16
"""Requests that may wait at once for adapters to be read and placed."""


def main() -> int:
    """Runs the process. Returns the exit code: 0 after an orderly end, else that of the error."""
    # A terminal's Ctrl-C and hang-up, and a service manager's SIGTERM, reach both processes; the parent decides when
    # this one ends.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _die_with_parent()
    open_standard_descriptors()  # a detached parent may have no stdin to pass on
    faulthandler.enable(2)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        channel = Channel(connection)
        messages = channel.messages()
        load = next(messages, None)
        if not isinstance(load, Load):  # the parent is gone already
            return 1
        logging.basicConfig(level=load.log_level, handlers=[LogRelay(channel)])
        try:
            model = _load(load, channel)
        except MistralrsError as error:
            # the traceback is pickled with the error, for a parent that shows tracebacks
            error.add_note(f"In the engine's process:\n{traceback.format_exc().rstrip()}")
            channel.send(NotLoaded(error))
            return error.exit_code
        threading.excepthook = lambda failed: _die(channel, failed.exc_value)
        with model:
            model.tokenizer.prepare()  # it delays no request there
            channel.send(Loaded(model.served, model.engine.config))
            workers.close()  # the parent prepares requests, with template processes of its own
            try:
                return _serve(model.engine, model.adapters, channel, messages)
            except Exception as error:
                return _die(channel, error)


def _load(load: Load, channel: Channel) -> LocalModel:
    def progress(what: str, done: int, total: int) -> None:
        channel.send(Progressed(what, done, total))

    try:
        return LocalModel.load(load.source, load.options, progress=progress)
    except (MistralrsError, SystemExit):
        raise
    except BaseException as error:  # a panic in a library that is written in Rust is no Exception
        raise LoadError(f"the model cannot be loaded: {words_of(error)}") from error


def _die(channel: Channel, error: BaseException | None) -> int:
    """Sends the parent the error that ends the process, and ends it. Returns the exit code.

    May be called from any thread. An error that ends one thread ends the process, because others would wait for it.
    """
    logger.error("the engine's process met a defect", exc_info=error)
    fault = EngineDeadError(f"the engine died: {words_of(error)}", hint="start it again")
    channel.send_last(Died(fault))
    channel.stop_reading()
    return fault.exit_code


def _serve(engine: Engine, adapters: ModelAdapters, channel: Channel, messages: Iterator[object]) -> int:
    """Serves until the parent closes the connection, or the engine has failed."""
    server = EngineServer(engine, channel, adapters)
    engine.after_step = server.flush
    server.flush()  # the engine's thread may have failed already
    for message in messages:
        match message:
            case Submit(number, request, chosen):
                server.submit(number, request, chosen)
            case Cancel(number):
                server.cancel(number)
            case ChangeAdapters(number, change):
                server.change_adapters(number, change)
            case AskStats():
                channel.send(Stats(engine.stats()))
            case _:
                raise TypeError(f"the parent sent {message!r}")
    fault = engine.fault
    engine.close()
    if fault is None:
        return 0
    channel.send(Died(fault))
    return fault.exit_code


class EngineServer:
    """Maps the parent's stream numbers to the engine's handles; the events of a step are sent together."""

    def __init__(self, engine: Engine, channel: Channel, adapters: ModelAdapters) -> None:
        self._engine = engine
        self._adapters = adapters
        self._channel = channel
        # what may have to read an adapter must not hold up the messages behind it
        self._lookups = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="adapters")
        self._changes = ThreadPoolExecutor(1, thread_name_prefix="adapter-changes")
        self._handles: dict[int, Handle] = {}
        self._waiting: dict[int, bool] = {}  # requests that wait for their adapters, and whether they were cancelled
        self._lock = threading.Lock()  # a request may end before its handle is stored
        self._events: list[PackedEvent] = []

    def submit(self, number: int, request: Request, adapters: Mapping[str, float] | None) -> None:
        """Submits a request; an error becomes the event that ends its stream."""
        if self._adapters.acts(adapters):
            with self._lock:
                self._waiting[number] = False
            self._lookups.submit(self._submit_adapted, number, request, adapters)
        else:
            self._submit(number, request, None)

    def _submit_adapted(self, number: int, request: Request, adapters: Mapping[str, float] | None) -> None:
        """Submits a request once its adapters are in their slots. Called by a thread of its own, which may wait."""
        acquired, error = None, None
        try:
            acquired = self._adapters.acquire(adapters)
        except Exception as raised:
            error = _named(raised)
        with self._lock:
            cancelled = self._waiting.pop(number)
        if error is not None:
            self._end(number, Failed(error, _no_usage(request)))
        elif cancelled:
            self._adapters.release(acquired)
            self._end(number, Finished("cancelled", _no_usage(request)))
        else:
            if acquired is not None:
                self._channel.send(Step([pack(number, chosen_event(acquired))]))
            self._submit(number, request, acquired)

    def _submit(self, number: int, request: Request, acquired: AcquiredAdapters | None) -> None:
        try:
            with self._lock:
                deliver = partial(self._deliver, number)
                self._handles[number] = self._adapters.submit_acquired(deliver, request, acquired)
        except MistralrsError as error:  # the parent makes the engine's checks, but has less of its state
            self._end(number, Failed(error, _no_usage(request)))

    def _end(self, number: int, event: Event) -> None:
        self._channel.send(Step([pack(number, event)]))

    def change_adapters(self, number: int, change: AdapterChange) -> None:
        """Makes a change of the adapters in a thread of its own, one after the other, and sends its end."""
        self._changes.submit(self._change, number, change)

    def _change(self, number: int, change: AdapterChange) -> None:
        error = None
        try:
            change.make(self._adapters)
        except Exception as raised:
            error = _named(raised)
        self._channel.send(AdaptersChanged(number, self._adapters.known(), error))

    def cancel(self, number: int) -> None:
        """Cancels a request; does nothing if it has ended, because the two messages may cross."""
        with self._lock:
            handle = self._handles.get(number)
            if number in self._waiting:
                self._waiting[number] = True
        if handle is not None:
            handle.cancel()

    def _deliver(self, number: int, event: Event) -> None:
        self._events.append(pack(number, event))
        if isinstance(event, End):
            with self._lock:
                del self._handles[number]

    def flush(self) -> None:
        """Sends the events of a step. Called by the thread that delivers them, after each step."""
        if self._events:
            self._channel.send(Step(self._events))
            self._events = []
        if self._engine.fault is not None:
            self._channel.stop_reading()


def _named(error: Exception) -> MistralrsError:
    """The error of an adapter as clients may see it; others are defects, which end neither process nor thread."""
    if isinstance(error, MistralrsError):
        return error
    logger.error("an adapter met a defect", exc_info=error)
    return EngineError(f"the adapter cannot be used: {words_of(error)}")


def _no_usage(request: Request) -> Usage:
    return Usage(len(request.prompt), 0, 0, 0.0, 0.0, 0.0, request.sampling.seed)


def _die_with_parent() -> None:
    """Makes the system end this process with its parent, because it does not read the socket while it loads. Without
    such a system call it reads the end of the socket after loading."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
