"""GGUF files put together byte by byte, so that tests can write old versions and broken files of every kind."""

from __future__ import annotations

import struct
from dataclasses import dataclass

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
"""Metadata value types."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Writes the parts of a file of one version; every argument is written as given, valid or not."""

    version: int = 3

    def length(self, value: int) -> bytes:
        return struct.pack("<I" if self.version == 1 else "<Q", value)

    def text(self, value: str | bytes, *, length: int | None = None) -> bytes:
        data = value.encode() if isinstance(value, str) else value
        return self.length(len(data) if length is None else length) + data

    def entry(self, key: str | bytes, kind: int, value: bytes) -> bytes:
        return self.text(key) + struct.pack("<I", kind) + value

    def array(self, kind: int, count: int, values: bytes) -> bytes:
        return struct.pack("<I", kind) + self.length(count) + values

    def info(self, name: str | bytes, dims: tuple[int, ...], type_id: int, offset: int) -> bytes:
        lengths = b"".join(self.length(dim) for dim in dims)
        return self.text(name) + struct.pack("<I", len(dims)) + lengths + struct.pack("<IQ", type_id, offset)

    def file(
        self,
        entries: list[bytes] | None = None,
        infos: list[bytes] | None = None,
        *,
        data: bytes = b"",
        entry_count: int | None = None,
        info_count: int | None = None,
        alignment: int = 32,
    ) -> bytes:
        entries, infos = entries or [], infos or []
        head = b"GGUF" + struct.pack("<I", self.version)
        head += self.length(len(infos) if info_count is None else info_count)
        head += self.length(len(entries) if entry_count is None else entry_count)
        head += b"".join(entries) + b"".join(infos)
        return head + bytes(-len(head) % alignment) + data
