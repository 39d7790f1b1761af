"""Weights: as a checkpoint yields them, and as a backend has placed them."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mistralrs.errors import LoadError
from mistralrs.quant.types import QuantType

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stored matrix (rows, columns) that is not placed yet; its bytes are still the file's."""

    name: str
    type: QuantType
    rows: int
    columns: int
    data: memoryview
    order: array[int] | None = None
    """For each row wanted the row of ``data`` (int32); None: as stored."""
    bias: array[float] | None = None
    """(rows,) float32, already in the wanted order."""


class Weight(Protocol):
    """A placed matrix; written once."""

    @property
    def type(self) -> QuantType:
        """The type in which it is stored."""
        ...

    @property
    def rows(self) -> int:
        """Outputs of a product with it."""
        ...

    @property
    def columns(self) -> int:
        """Inputs of a product with it."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        ...

    def dense(self) -> torch.Tensor:
        """(rows, columns) float32, exactly as the type's definition decodes it."""
        ...


def read_vector(name: str, type: QuantType, data: memoryview) -> array[float]:
    """A stored vector as float32, decoded if it is quantized.

    Raises ``LoadError`` for a length that does not split in the type's blocks.
    """
    if type.name == "F32":
        return array("f", data.tobytes())
    if type.name == "F16":
        return array("f", struct.unpack(f"<{len(data) // 2}e", data))
    if type.name == "BF16":
        halves = array("H", data.tobytes())
        return array("f", array("I", (half << 16 for half in halves)).tobytes())
    if len(data) % type.block_bytes:
        raise LoadError(f"{name}: {len(data)} bytes do not split in blocks of {type.name}")
    return _decoded_vector(type, data)


def _decoded_vector(type: QuantType, data: memoryview) -> array[float]:
    import torch

    from mistralrs.quant.dequantize import dequantize

    columns = len(data) // type.block_bytes * type.block_len
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(1, -1)
    values = dequantize(type, raw, columns)
    return array("f", values.numpy().tobytes())
