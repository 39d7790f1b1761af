"""Writes a safetensors file: the header first, then the tensors' bytes as they come.

The `safetensors` package wants all tensors in memory at once. Its `README.md` describes the format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mistralrs.loading.new_file import new_file

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number by the name of its type."""
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class SafetensorsInfo:
    """A tensor's entry in the header."""

    name: str
    type: str
    """A key of ``ITEM_BYTES``."""
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.type]


def write_safetensors(
    path: Path,
    tensors: Sequence[SafetensorsInfo],
    contents: Iterable[Iterable[memoryview]],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Writes ``path``, replacing an existing file once the new one is complete; after an error nothing is left behind.

    ``contents``: the bytes of each of ``tensors``, in pieces of format "B". Raises ``LoadError`` when the disk has no
    room, which is checked before anything is written, or the file cannot be written; ValueError when the bytes of a
    tensor are not as many as its type and shape take.
    """
    header = _header(tensors, metadata)
    with new_file(path, len(header) + sum(info.nbytes for info in tensors)) as put:
        put(memoryview(header))
        for info, pieces in zip(tensors, contents, strict=True):
            size = 0
            for piece in pieces:
                size += len(piece)
                put(piece)
            if size != info.nbytes:
                raise ValueError(f"{info.name} has {size} bytes, {info.nbytes} were announced")


def _header(tensors: Sequence[SafetensorsInfo], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for info in tensors:
        end = offset + info.nbytes
        entries[info.name] = {"dtype": info.type, "shape": list(info.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
