"""Prepares the process's three streams: all open, waiting for slow readers, and stderr without errors."""

from __future__ import annotations

import io
import select
import sys
from typing import TYPE_CHECKING

from mistralrs.process import open_standard_descriptors

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MESSAGE_PATIENCE_S = 1.0
"""Seconds that a message waits for stderr's reader, if stderr is non-blocking."""


def prepare_streams() -> bool:
    """Makes the three streams usable for the rest of the process. Returns False if stdout was closed.

    Closed ones become the null device. Text that cannot be encoded or decoded is replaced. Writing to stderr never
    fails: a message that cannot be delivered is no reason for another exit code.
    """
    open_standard_descriptors()
    stdout_is_open = sys.stdout is not None
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  (for the rest of the process)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.stdout is sys.__stdout__:
        sys.stdout = _rebuilt(sys.stdout, _PatientFile(1, "w", closefd=False))
    if sys.stderr is sys.__stderr__ or sys.__stderr__ is None:
        sys.stderr = _rebuilt(sys.stderr, _MessageFile(2, "w", closefd=False))
    return stdout_is_open


class OutputError(OSError):
    """Standard output cannot be written, for another reason than a reader that is gone."""


class _PatientFile(io.FileIO):
    """The descriptor of stdout, which is always written to the end.

    Another process that shares a pipe or a terminal may have made it non-blocking; a full one is then waited for.
    """

    def write(self, data: ReadableBuffer) -> int:
        """Raises ``BrokenPipeError``, or ``OutputError`` if it cannot be written."""
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output cannot be written: {error.strerror}") from error
        return written


class _MessageFile(io.FileIO):
    """A descriptor for messages. A message that cannot be delivered, because nobody reads it or a disk is full, is
    lost.
    """

    def write(self, data: ReadableBuffer) -> int:
        try:
            written = super().write(data)
            if written is None and select.select([], [self], [], MESSAGE_PATIENCE_S)[1]:
                written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def _rebuilt(stream: object, raw: io.FileIO) -> io.TextIOWrapper:
    """Returns a text stream on ``raw`` that encodes and buffers like ``stream``."""
    assert isinstance(stream, io.TextIOWrapper)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
