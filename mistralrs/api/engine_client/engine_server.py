"""The engine's own process: loads a model, serves the parent's requests, and ends with the parent.

``engine_connection`` runs it with the number of an inherited socket. It writes no log of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import logging.handlers
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue

from mistralrs.api.engine_client.engine_messages import (
    AskStats,
    Cancel,
    Died,
    FrameDecoder,
    Load,
    Loaded,
    Logged,
    NotLoaded,
    PackedEvent,
    Progressed,
    Stats,
    Step,
    Submit,
    frame,
    pack,
)
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import End, Event, Failed, Handle, Usage
from mistralrs.errors import EngineError, LoadError, MistralrsError
from mistralrs.process import open_standard_descriptors
from mistralrs.text.worker import workers

logger = logging.getLogger("mistralrs.api.engine_client.engine_server")  # this module runs as __main__


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
                return _serve(model.engine, channel, messages)
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
        raise LoadError(f"the model cannot be loaded: {_words(error)}") from error


def _die(channel: Channel, error: BaseException | None) -> int:
    """Sends the parent the error that ends the process, and ends it. Returns the exit code.

    May be called from any thread. An error that ends one thread ends the process, because others would wait for it.
    """
    logger.error("the engine's process met a defect", exc_info=error)
    fault = EngineError(f"the engine died: {_words(error)}", hint="start it again")
    channel.send_last(Died(fault))
    channel.stop_reading()
    return fault.exit_code


def _words(error: BaseException | None) -> str:
    return "a thread ended" if error is None else f"{type(error).__name__}: {error}"


def _serve(engine: Engine, channel: Channel, messages: Iterator[object]) -> int:
    """Serves until the parent closes the connection, or the engine has failed."""
    server = EngineServer(engine, channel)
    engine.after_step = server.flush
    server.flush()  # the engine's thread may have failed already
    for message in messages:
        match message:
            case Submit(number, request):
                server.submit(number, request)
            case Cancel(number):
                server.cancel(number)
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


class Channel:
    """This end of the socket. ``send`` may be called from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._hung_up = False

    def send(self, message: object) -> None:
        """Sends a message; waits while the parent does not read. Sends nothing without a parent."""
        data = frame(message)
        with self._lock:
            if self._hung_up:
                return
            try:
                self._connection.sendall(data)
            except OSError:
                self._hung_up = True

    def send_last(self, message: object) -> None:
        """Sends a message as ``send`` does, and makes it the last."""
        self.send(message)
        self._hung_up = True

    def messages(self) -> Iterator[object]:
        """Yields the parent's messages until it closes its end or ``stop_reading`` is called."""
        decoder = FrameDecoder()
        with contextlib.suppress(ConnectionResetError):  # the parent is gone and has left something unread
            while data := self._connection.recv(1 << 18):
                yield from decoder.feed(data)

    def stop_reading(self) -> None:
        """Ends ``messages``. May be called from any thread."""
        with contextlib.suppress(OSError):  # the parent is gone
            self._connection.shutdown(socket.SHUT_RD)


class EngineServer:
    """Maps the parent's stream numbers to the engine's handles; the events of a step are sent together."""

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self._engine = engine
        self._channel = channel
        self._handles: dict[int, Handle] = {}
        self._lock = threading.Lock()  # a request may end before its handle is stored
        self._events: list[PackedEvent] = []

    def submit(self, number: int, request: Request) -> None:
        """Submits a request; an error becomes the event that ends its stream."""
        try:
            with self._lock:
                self._handles[number] = self._engine.submit_to(partial(self._deliver, number), request)
        except MistralrsError as error:  # the parent makes the engine's checks, but has less of its state
            usage = Usage(len(request.prompt), 0, 0, 0.0, 0.0, 0.0, request.sampling.seed)
            self._channel.send(Step([pack(number, Failed(error, usage))]))

    def cancel(self, number: int) -> None:
        """Cancels a request; does nothing if it has ended, because the two messages may cross."""
        with self._lock:
            handle = self._handles.get(number)
        if handle is not None:
            handle.cancel()

    def _deliver(self, number: int, event: Event) -> None:
        self._events.append(pack(number, event))
        if isinstance(event, End):
            with self._lock:
                del self._handles[number]

    def flush(self) -> None:
        """Sends the events of a step. Called by the engine's thread, which delivers them, after each step."""
        if self._events:
            self._channel.send(Step(self._events))
            self._events = []
        if self._engine.fault is not None:
            self._channel.stop_reading()


class LogRelay(logging.handlers.QueueHandler):
    """Sends records of the log to the parent, which decides how they are shown."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(SimpleQueue())
        self._channel = channel

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Returns the record with its message formatted, and only attributes that can be pickled.

        An error's text is in the message; its traceback is text in ``exc_text``, which every formatter reads.
        """
        message, trace = record.getMessage(), None
        if record.exc_info is not None and record.exc_info[1] is not None:
            message = f"{message}: {_words(record.exc_info[1])}"
            trace = _PLAIN.formatException(record.exc_info)
        facts = {name: getattr(record, name) for name in _CROSSING}
        return logging.makeLogRecord({**facts, "msg": message, "exc_text": trace})

    def enqueue(self, record: logging.LogRecord) -> None:
        """Sends one record."""
        self._channel.send(Logged(record))


_PLAIN = logging.Formatter()
_CROSSING = (
    *("name", "levelno", "levelname", "created", "msecs", "process", "processName", "thread", "threadName"),
    *("pathname", "filename", "module", "lineno", "funcName"),
)
"""Attributes that every record has beside its message."""


def _die_with_parent() -> None:
    """Makes the system end this process with its parent, because it does not read the socket while it loads. Without
    such a system call it reads the end of the socket after loading."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
