"""Splits a stream of server-sent events (WHATWG HTML, section 9.2) into the data of its events."""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 32 << 20
"""Bytes of one event, at most."""
_LINE_END = re.compile(rb"\r\n|\n|\r")


class SseDecoder:
    """Takes bytes as they come. Comments and fields other than ``data`` are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the data of the events that ``data`` completes. Raises ValueError for an event that is too long."""
        self._rest += data
        found = []
        # a carriage return at the end may be the first half of a line's end
        end = len(self._rest) - self._rest.endswith(b"\r")
        position = 0
        for match in _LINE_END.finditer(self._rest, 0, end):
            event = self._take(self._rest[position : match.start()])
            if event is not None:
                found.append(event)
            position = match.end()
        self._rest = self._rest[position:]
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise ValueError(f"an event has more than {MAX_EVENT_BYTES} bytes")
        return found

    def _take(self, line: bytes) -> bytes | None:
        if not line:
            event = b"\n".join(self._data) if self._data else None
            self._data, self._size = [], 0
            return event
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return None
