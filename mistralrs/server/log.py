"""The file that requests and answers are appended to: one JSON object a line, written by one thread.

Knows nothing of HTTP: it is handed an id, a kind and bytes of JSON. Handing over never waits. What a crash leaves is
whole lines, but for the last, which the next start ends; what the disk does not take is counted and said once.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from mistralrs.errors import UsageError

Kind = Literal["request", "response", "chunk", "error", "cancelled"]

COMPLAIN_S = 600.0
"""After saying that records are lost it is not said again for so long."""

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

    def __init__(self, path: Path, *, bodies: bool = True, secrets: Sequence[str] = ()) -> None:
        """``secrets`` are crossed out wherever they occur; ``bodies`` False leaves out what was said."""
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"--log {path}: {error.strerror}", hint="name a file that can be written") from error
        self.lost = 0
        """Records that could not be written."""
        self._path = path
        self._bodies = bodies
        # as they look inside a JSON string; short ones would cross out innocent text
        self._secrets = [json.dumps(secret, ensure_ascii=False)[1:-1].encode() for secret in secrets if len(secret) > 7]
        self._half_line = _ends_within_a_line(self._file)
        self._quiet_until = 0.0
        self._untold = 0  # lost, and not yet said in the file
        self._waiting: deque[_Record] = deque()
        self._waiting_cost = 0
        self._closing = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mistralrs-log", daemon=True)
        self._thread.start()

    def record(self, kind: Kind, id: str, *, body: bytes | None = None, **facts: object) -> None:
        """Queues a line. ``body`` is JSON of one line; a request's is whatever came."""
        if not self._bodies:
            if kind == "chunk":
                return
            body = None
        record = _Record(datetime.now().astimezone(), kind, id, facts, body)
        with self._news:
            if self._closing:
                return
            if self._waiting_cost + record.cost > self.BACKLOG:
                self._lose("the disk is too slow")
                return
            self._waiting.append(record)
            self._waiting_cost += record.cost
            self._news.notify()

    def close(self) -> None:
        """Writes what is waiting and ends. Idempotent."""
        with self._news:
            if self._closing:
                return
            self._closing = True
            self._news.notify()
        self._thread.join()
        os.close(self._file)

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._closing:
                    self._news.wait()
                if not self._waiting:
                    return
                record = self._waiting.popleft()
                self._waiting_cost -= record.cost
            self._write(record)

    def _write(self, record: _Record) -> None:
        lines = self._line(record)
        untold = self._untold
        if untold:
            lines = _dump({"time": record.when.isoformat(), "kind": "lost", "records": untold}) + b"\n" + lines
        if self._half_line:
            lines = b"\n" + lines
        try:
            self._write_all(lines)
        except OSError as error:
            with self._news:
                self._lose(error.strerror or str(error))
        else:
            with self._news:
                self._untold -= untold

    def _write_all(self, data: bytes) -> None:
        """One call for one line wherever the system takes it whole, so that nothing can come between its parts."""
        while data:
            written = os.write(self._file, data)
            self._half_line = data[written - 1 : written] != b"\n"
            data = data[written:]

    def _line(self, record: _Record) -> bytes:
        head: dict[str, object] = {"time": record.when.isoformat(), "kind": record.kind, "id": record.id}
        line = _dump(head | record.facts)
        if record.body is not None:
            body = _one_line(record.body) if record.kind == "request" else record.body
            line = line[:-1] + b',"body":' + body + b"}"
        for secret in self._secrets:
            line = line.replace(secret, b"[key]")
        return line + b"\n"

    def _lose(self, why: str) -> None:
        """Called with the lock held."""
        self.lost += 1
        self._untold += 1
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + COMPLAIN_S
            _logger.error("the log %s is not complete: %s; the server goes on", self._path, why)


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _one_line(body: bytes) -> bytes:
    """JSON without line breaks; what is no JSON becomes a string."""
    try:
        return _dump(json.loads(body.decode(), parse_constant=_refuse))
    except (ValueError, RecursionError):
        return _dump(body.decode(errors="replace"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _ends_within_a_line(file: int) -> bool:
    """A process was killed while it wrote here."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"
