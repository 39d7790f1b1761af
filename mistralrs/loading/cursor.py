"""Reads the header of a binary file: bounds are checked before every read, and every error names its place."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from mistralrs.errors import FormatError

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


class Cursor:
    """A position in a mapped file. ``place`` names the field that is being read, for errors."""

    def __init__(self, path: Path, data: mmap.mmap, *, limit: int, hint: str) -> None:
        """Reads at most ``limit`` bytes. ``hint`` is that of errors without a hint of their own."""
        self.place = "header"
        self.position = 0
        self.file_size = len(data)
        self.path = path
        self._data = data
        self._end = min(len(data), limit)
        self._hint = hint

    def error(self, reason: str, *, hint: str | None = None) -> FormatError:
        return FormatError(str(self.path), self.place, reason, hint=hint or self._hint)

    def read(self, number: struct.Struct) -> int:
        value: int = number.unpack_from(self._data, self.take(number.size))[0]
        return value

    def read_bytes(self, length: int) -> bytes:
        return self._data[self.take(length) : self.position]

    def read_text(self, length: int) -> str:
        start = self.take(length)
        try:
            return self._data[start : self.position].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"text at byte {start} is not UTF-8") from error

    def take(self, size: int) -> int:
        """Moves past ``size`` bytes and returns their start."""
        start = self.position
        if size > self._end - start:
            raise self.error(f"{size} bytes at byte {start} run past {self.end_name()}")
        self.position = start + size
        return start

    def check_count(self, noun: str, count: int, *, smallest: int) -> None:
        """Raises FormatError if ``count`` things of at least ``smallest`` bytes exceed the bytes left."""
        left = self._end - self.position
        if count * smallest > left:
            raise self.error(f"claims {count} {noun}, but only {left} bytes are left before {self.end_name()}")

    def end_name(self) -> str:
        if self._end == self.file_size:
            return f"the end of the file at byte {self._end}"
        return f"byte {self._end}, where a header ends at the latest"


def shown(value: object) -> str:
    """The value for a message: quoted, with control characters escaped, and truncated."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
