"""Weights: as a checkpoint yields them, and as a backend has placed them."""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import Protocol

from mistralrs.errors import LoadError
from mistralrs.ops.buffer import Buffer
from mistralrs.quant.types import QuantType


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
    in_place: bool = False
    """Whether its weight reads ``data`` where it lies instead of a copy."""


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

    def dense(self) -> Buffer:
        """A copy (rows, columns) in float32, exactly as the type's definition decodes it."""
        ...


def read_vector(name: str, type: QuantType, data: memoryview) -> array[float]:
    """Returns a stored vector as float32, decoded if it is quantized.

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
    from mistralrs.quant.dequantize import dequantize_vector  # here: most vectors are floats, and it loads torch

    return dequantize_vector(type, data)
