"""A file, or a pipe, that one thread appends lines to; it is opened anew when its name refers to another file.

Nothing here waits for a reader any longer than its caller does.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import time
from collections.abc import Callable
from pathlib import Path

COMPLAIN_S = 600.0
"""Seconds during which a complaint is not repeated."""
LOOK_S = 0.1
"""Seconds between two checks of a writer that waits for a reader."""

_logger = logging.getLogger(__name__)


class LogFile:
    """Raises OSError if the file cannot be opened. ``reopen`` may be called from any thread, the rest by one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        self._half_line = _ends_within_a_line(self._file)
        self._asked = False
        self._quiet_until = 0.0

    def reopen(self) -> None:
        """Makes the next line open the file anew, by its name."""
        self._asked = True

    def append(self, lines: bytes, *, is_worth_waiting: Callable[[], bool]) -> None:
        """Writes whole lines. Raises OSError; EAGAIN if there is no reader that is worth waiting for."""
        self.follow()
        rest = self._separated(lines)
        while rest:
            try:
                rest = self._write(rest)
            except (BlockingIOError, BrokenPipeError) as error:
                if not is_worth_waiting():
                    raise BlockingIOError(errno.EAGAIN, "nobody reads it") from error
                if isinstance(error, BrokenPipeError):  # the next reader gets the line from its beginning
                    self._half_line, rest = False, lines
                self._wait()
                if self.follow():
                    rest = self._separated(lines)

    def follow(self) -> bool:
        """Opens the file anew if that was asked for, or if it was renamed or deleted; returns whether it did.

        If that fails, a file that still has a name is used as before, with a complaint; for one without a name OSError
        is raised.
        """
        if not self._asked and self._is_current():
            return False
        self._asked = False
        try:
            file = _open(self._path)
        except OSError as error:
            if os.fstat(self._file).st_nlink == 0:
                raise
            self._complain(error)
            return False
        os.close(self._file)
        self._file = file
        self._half_line = _ends_within_a_line(file)
        return True

    def close(self) -> None:
        os.close(self._file)

    def _is_current(self) -> bool:
        try:
            named = os.stat(self._path)
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(self._file))

    def _separated(self, lines: bytes) -> bytes:
        """Returns ``lines``, beginning on a line of their own."""
        return b"\n" + lines if self._half_line else lines

    def _write(self, data: bytes) -> bytes:
        """Writes as much of ``data`` as the system takes and returns the rest.

        A line is one call if the system takes it whole, so that nothing can come between its parts.
        """
        written = os.write(self._file, data)
        self._half_line = data[written - 1 : written] != b"\n"
        return data[written:]

    def _wait(self) -> None:
        """Waits for a moment, or until a pipe has room."""
        poll = select.poll()
        poll.register(self._file, select.POLLOUT)
        # no reader, which the system reports at once
        if any(event & ~select.POLLOUT for _, event in poll.poll(LOOK_S * 1000)):
            time.sleep(LOOK_S)

    def _complain(self, error: OSError) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + COMPLAIN_S
            why = error.strerror or str(error)
            _logger.error("the log %s cannot be opened anew (%s): it goes on in the old file", self._path, why)


def _open(path: Path) -> int:
    """Returns a descriptor that never waits; for a pipe only its writing end, which shows whether there is a reader."""
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    file = os.open(path, os.O_RDWR | flags, 0o600)
    if not stat.S_ISFIFO(os.fstat(file).st_mode):
        return file
    try:  # while there is a reader, if only this process: without one the pipe could not be opened
        return os.open(path, os.O_WRONLY | flags, 0o600)
    finally:
        os.close(file)


def _ends_within_a_line(file: int) -> bool:
    """Returns whether a process was killed while it wrote here."""
    status = os.fstat(file)
    return stat.S_ISREG(status.st_mode) and status.st_size > 0 and os.pread(file, 1, status.st_size - 1) != b"\n"
