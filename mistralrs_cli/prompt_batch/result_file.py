"""The file of a batch's answers: JSON lines in the order of the prompts, to which an interrupted run is continued."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mistralrs.errors import MistralrsError, UsageError
from mistralrs.parsing import parse_nested
from mistralrs_cli.printing.answer_record import Record, json_line

SYNC_INTERVAL_S = 1.0
"""Seconds of answers that a failure of the machine can cost, at most; the end of the process alone costs none."""
_BEGINNING = b'{"line": '
"""The first bytes of every record."""
_START_ANEW = "--overwrite empties it, or name another file with --out"
_logger = logging.getLogger("mistralrs.cli")


class ResultFileError(MistralrsError):
    """The file of answers cannot be written."""


@dataclass(frozen=True, slots=True)
class KeptRecord:
    """The part of an earlier record that decides whether the run goes on after it."""

    line: int
    digest: str
    options: str
    seed: int
    failed: bool


class ResultFile:
    """A file that this process alone writes; a context manager. ``records`` is read to its end before ``append``."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Opens or makes the file. Raises ``UsageError`` for one that is no regular file or in use by another run, and
        ``ResultFileError`` for one that cannot be opened."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ResultFileError(f"{path} cannot be opened: {error.strerror}", hint="name another file") from error
        self._end = 0
        self._synced = time.monotonic()
        try:
            self._take(overwrite=overwrite)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, *, overwrite: bool) -> None:
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            raise UsageError(f"{self._path} is no regular file", hint="without --out, --jsonl writes to stdout")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another run writes {self._path}", hint="wait for its end, or name another file"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            _logger.warning("%s is on a file system without locks: a second run must not write it", self._path)
        if overwrite:
            os.ftruncate(self._descriptor, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def records(self) -> Iterator[KeptRecord]:
        """Yields the records of earlier runs, and removes what a killed run left of its last one.

        Raises ``UsageError`` for a file that holds something else.
        """
        with open(self._descriptor, "rb", closefd=False) as file:
            last = b""
            for number, line in enumerate(file, 1):
                last = line
                record = _read(line)
                if record is None:
                    if file.read(1) or not _may_be_torn(line):
                        hint = _START_ANEW
                        raise UsageError(f"{self._path}: line {number} is no answer of a batch", hint=hint)
                    break
                self._end += len(line)
                yield record
        size = os.fstat(self._descriptor).st_size
        if size > self._end:
            _logger.warning("%s: an answer that was cut short is removed (%d bytes)", self._path, len(last))
            os.ftruncate(self._descriptor, self._end)
        os.lseek(self._descriptor, self._end, os.SEEK_SET)

    def append(self, record: Record) -> None:
        """Adds a record. Raises ``ResultFileError`` if it cannot be written; the file then ends before it."""
        left = memoryview(json_line(record).encode())
        size = len(left)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            self._end += size
            now = time.monotonic()
            if now - self._synced > SYNC_INTERVAL_S:
                os.fdatasync(self._descriptor)
                self._synced = now
        except OSError as error:
            with contextlib.suppress(OSError):  # the next run removes a torn line
                os.ftruncate(self._descriptor, self._end)
            hint = "make room and run the same command again: it goes on after the last answer in the file"
            raise ResultFileError(f"{self._path} cannot be written: {error.strerror}", hint=hint) from error


def _read(line: bytes) -> KeptRecord | None:
    """Returns the record of a line; None: it is none, or only a part of one."""
    if not (line.startswith(_BEGINNING) and line.endswith(b"}\n")):
        return None
    try:
        found = parse_nested(json.loads, line)
        kept = KeptRecord(
            found["line"], found["digest"], found["options"], found["seed"], failed=found.get("error") is not None
        )
    except (ValueError, KeyError):
        return None
    numbers = isinstance(kept.line, int) and isinstance(kept.seed, int)
    return kept if numbers and isinstance(kept.digest, str) and isinstance(kept.options, str) else None


def _may_be_torn(line: bytes) -> bool:
    """Returns whether a killed run, or a machine that lost its power, may have left these last bytes.

    Anything else may be a user's own file, from which nothing is removed.
    """
    if not line.strip(b"\0"):
        return True
    if not _BEGINNING.startswith(line[: len(_BEGINNING)]):
        return False
    try:
        parse_nested(json.loads, line)
    except ValueError:
        return True
    return not line.endswith(b"\n")
