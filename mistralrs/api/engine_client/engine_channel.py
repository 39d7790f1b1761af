"""The engine's process's end of the socket to the server: messages both ways, and the log among them."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import socket
import threading
from collections.abc import Iterator
from queue import SimpleQueue

from mistralrs.api.engine_client.engine_messages import FrameDecoder, Logged, frame


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
            message = f"{message}: {words_of(record.exc_info[1])}"
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


def words_of(error: BaseException | None) -> str:
    """Returns an error's kind and words."""
    return "a thread ended" if error is None else f"{type(error).__name__}: {error}"
