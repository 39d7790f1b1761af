"""The file that requests and answers are appended to: one JSON object a line, written by one thread.

Handing a record over never waits. A crash leaves whole lines, but for the last, which the next start ends; records that
the disk does not take are counted, and the count is written.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from mistralrs.errors import UsageError
from mistralrs.parsing import parse_nested
from mistralrs.server.log_file import COMPLAIN_S, LogFile
from mistralrs.server.redaction import KeyRedactor

Kind = Literal["request", "response", "chunk", "error", "cancelled"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Record:
    when: datetime
    kind: Kind
    id: str
    facts: dict[str, object]
    body: bytes | None

    @property
    def cost(self) -> int:
        return 200 + len(self.body or b"")


class RequestLog:
    """Appends records to a file. Raises ``UsageError`` if it cannot be opened.

    ``record`` may be called from any thread and never waits: when more than ``BACKLOG`` bytes have not been written,
    records are dropped, counted in ``lost``, and the count is written once there is room again.
    """

    BACKLOG = 32 * 1024 * 1024
    CLOSING_S = 3.0
    """Seconds that ``close`` waits for a disk, or for a reader of a pipe."""

    def __init__(self, path: Path, *, bodies: bool = True, secrets: Sequence[str] = ()) -> None:
        """Crosses out ``secrets`` wherever they occur; ``bodies`` False leaves out all bodies."""
        try:
            self._file = LogFile(path)
        except OSError as error:
            raise UsageError(f"--log {path}: {error.strerror}", hint="name a file that can be written") from error
        self.lost = 0
        """Records that could not be written."""
        self._path = path
        self._bodies = bodies
        self._redactor = KeyRedactor(secrets)
        self._quiet_until = 0.0
        self._untold = 0  # lost, and not yet reported in the file
        self._waiting: deque[_Record] = deque()
        self._waiting_cost = 0
        self._is_reopening = False
        self._closes_at = math.inf
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mistralrs-log", daemon=True)
        self._thread.start()

    def record(self, kind: Kind, id: str, *, body: bytes | None = None, **facts: object) -> None:
        """Queues a line. ``body`` is JSON of one line; a request's is the bytes that arrived."""
        if not self._bodies:
            if kind == "chunk":
                return
            body = None
        record = _Record(datetime.now().astimezone(), kind, id, facts, body)
        with self._news:
            if self._is_closing:
                return
            if self._waiting_cost + record.cost > self.BACKLOG:
                self._lose(1, "the disk is too slow, or nobody reads it")
                return
            self._waiting.append(record)
            self._waiting_cost += record.cost
            self._news.notify()

    def reopen(self) -> None:
        """Opens the file anew after it was renamed; never waits. May be called from any thread."""
        with self._news:
            self._file.reopen()
            self._is_reopening = True
            self._news.notify()

    def close(self) -> None:
        """Writes the waiting records and ends, after ``CLOSING_S`` seconds at the latest. Idempotent."""
        with self._news:
            if self._is_closing:
                return
            self._closes_at = time.monotonic() + self.CLOSING_S
            self._news.notify()
        self._thread.join(self.CLOSING_S + 1)
        if self._thread.is_alive():  # within a write that does not return
            with self._news:
                self._lose(1 + len(self._waiting), "the disk does not answer")
                self._waiting.clear()
        else:
            self._file.close()
        if self.lost:
            _logger.error("the log %s lacks %d records", self._path, self.lost)

    @property
    def _is_closing(self) -> bool:
        return self._closes_at < math.inf

    def _run(self) -> None:
        is_over = False
        while not is_over:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._is_closing or self._is_reopening)
                is_reopening, self._is_reopening = self._is_reopening, False
                is_over = not self._waiting and self._is_closing
                record = self._waiting.popleft() if self._waiting else None
                self._waiting_cost -= record.cost if record is not None else 0
            if is_reopening:
                self._follow()
            if record is not None:
                self._write(record)

    def _follow(self) -> None:
        """Opens at once, and not with the next record: the program that renamed the file may be waiting for the new
        one.
        """
        try:
            self._file.follow()
        except OSError as error:
            self._complain(error.strerror or str(error))

    def _write(self, record: _Record) -> None:
        lines = self._line(record)
        untold = self._untold
        if untold:
            lines = _dump({"time": record.when.isoformat(), "kind": "lost", "records": untold}) + b"\n" + lines
        try:
            self._file.append(lines, is_worth_waiting=lambda: time.monotonic() < self._closes_at)
        except OSError as error:
            with self._news:
                self._lose(1, error.strerror or str(error))
                if isinstance(error, BlockingIOError):  # closing, and the others would fail likewise
                    self._lose(len(self._waiting), "nobody reads it")
                    self._waiting.clear()
        else:
            with self._news:
                self._untold -= untold

    def _line(self, record: _Record) -> bytes:
        facts = {
            name: self._redactor.text(value) if isinstance(value, str) else value
            for name, value in {"id": record.id, **record.facts}.items()
        }
        line = _dump({"time": record.when.isoformat(), "kind": record.kind, **facts})
        if record.body is not None:
            line = line[:-1] + b',"body":' + self._body(record.kind, record.body) + b"}"
        return line + b"\n"

    def _body(self, kind: Kind, body: bytes) -> bytes:
        """Returns JSON without line breaks and without keys; data that is not JSON, or too deep, becomes a string."""
        # no request in UTF-16 is served, and yet its keys must be found
        text = body.decode(json.detect_encoding(body), errors="replace")
        if kind != "request" and not self._redactor.finds(text):
            return body
        try:
            value = parse_nested(json.loads, body.decode(), parse_constant=_refuse)
            line = _dump(value)
            return _dump(self._redactor.value(value)) if self._redactor.finds(line.decode()) else line
        except (ValueError, RecursionError):
            return _dump(self._redactor.text(text))

    def _lose(self, count: int, why: str) -> None:
        """Called with the lock held."""
        self.lost += count
        self._untold += count
        self._complain(why)

    def _complain(self, why: str) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + COMPLAIN_S
            _logger.error("the log %s is not complete: %s; the server goes on", self._path, why)


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
