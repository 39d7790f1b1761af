"""Writes a GGUF file, version 3: the whole header first, then the tensors' bytes as they come.

Only the piece that is being written is in memory. The file has a temporary name until it is complete. ggml's
`docs/gguf.md` describes the format.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mistralrs.loading.cursor import round_up
from mistralrs.loading.new_file import Put, new_file
from mistralrs.quant.types import QuantType

ALIGNMENT = 32
"""Alignment of the tensors in bytes, counted from the first one's start; the format's default."""

Value = bool | int | float | str | list[str] | list[bool] | list[int] | list[float] | tuple[int, ...]
"""A metadata value. An int is stored as uint32, a list of ints as int32, a tuple of ints as uint32, a float as
float32."""

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_VERSION = 3


@dataclass(frozen=True, slots=True)
class StoredMetadata:
    """The metadata of another file, version 2 or 3, as it is stored there."""

    entries: int
    data: bytes
    alignment: int
    """That of the tensors, which the metadata may say."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's entry in the header; ``shape`` is in torch's order, rows first."""

    name: str
    type: QuantType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


class GgufWriter:
    """Writes the tensors of a file whose header is written; ``new_gguf`` makes one."""

    def __init__(self, put: Put, tensors: Sequence[TensorInfo], *, alignment: int) -> None:
        self._put = put
        self._alignment = alignment
        self._remaining = list(reversed(tensors))

    def write(self, name: str, pieces: Iterable[memoryview]) -> None:
        """Writes the bytes of the next tensor, in pieces of format "B". Raises ``LoadError`` when they cannot be
        written, and ValueError when name or size are not those of the header."""
        info = self._remaining.pop()
        if info.name != name:
            raise ValueError(f"{info.name} comes before {name}")
        size = 0
        for piece in pieces:
            size += len(piece)
            self._put(piece)
        if size != info.nbytes:
            raise ValueError(f"{name} has {size} bytes, {info.nbytes} were announced")
        self._put(memoryview(bytes(round_up(size, self._alignment) - size)))

    def check_complete(self) -> None:
        """Raises ValueError when a tensor is missing."""
        if self._remaining:
            raise ValueError(f"{self._remaining[-1].name} was not written")


@contextmanager
def new_gguf(
    path: Path, metadata: Mapping[str, Value] | StoredMetadata, tensors: Sequence[TensorInfo]
) -> Iterator[GgufWriter]:
    """Writes ``path``, replacing an existing file, if the block ends without error; otherwise leaves nothing behind.

    The block writes each of ``tensors``, in their order. Raises ``LoadError`` when the disk has no room, which is
    checked before anything is written, or the file cannot be written.
    """
    alignment = metadata.alignment if isinstance(metadata, StoredMetadata) else ALIGNMENT
    header = _header(metadata, tensors, alignment=alignment)
    with new_file(path, len(header) + sum(round_up(info.nbytes, alignment) for info in tensors)) as put:
        put(memoryview(header))
        writer = GgufWriter(put, tensors, alignment=alignment)
        yield writer
        writer.check_complete()


def _header(metadata: Mapping[str, Value] | StoredMetadata, tensors: Sequence[TensorInfo], *, alignment: int) -> bytes:
    """The bytes of the header, with padding up to the first tensor."""
    if isinstance(metadata, StoredMetadata):
        entries, stored = metadata.entries, metadata.data
    else:
        entries, stored = len(metadata), b"".join(_text(key) + _entry(value) for key, value in metadata.items())
    head = bytearray(b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), entries)) + stored
    offset = 0
    for info in tensors:
        dims = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
        head += _text(info.name) + dims + struct.pack("<IQ", info.type.ggml_id, offset)
        offset += round_up(info.nbytes, alignment)
    head += bytes(round_up(len(head), alignment) - len(head))
    return bytes(head)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(value: Value) -> bytes:
    """The bytes of a value's type and of the value."""
    if isinstance(value, list):
        return struct.pack("<I", _ARRAY) + _array(value)
    if isinstance(value, tuple):
        return struct.pack(f"<IIQ{len(value)}I", _ARRAY, _U32, len(value), *value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    return struct.pack("<I", _STRING) + _text(value)


def _array(values: list[str] | list[bool] | list[int] | list[float]) -> bytes:
    """The bytes of the items' type, their number and the items, which all have the first one's type."""
    if values and isinstance(values[0], str):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_text, values))
    kind, code = _I32, "i"
    if values and isinstance(values[0], bool):
        kind, code = _BOOL, "?"
    elif values and isinstance(values[0], float):
        kind, code = _F32, "f"
    return struct.pack(f"<IQ{len(values)}{code}", kind, len(values), *values)
