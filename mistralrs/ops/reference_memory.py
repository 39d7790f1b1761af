"""The memory of the reference implementation: weights as tensors, and buffers seen as tensors."""

from __future__ import annotations

from math import prod

import torch

from mistralrs.ops.arena import Arena, buffer, buffers_bytes
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.weight import Matrix, Weight
from mistralrs.quant.dequantize import dequantize
from mistralrs.quant.types import QuantType

_ROWS_AT_ONCE = 4096


def tensor_of(buffer: Buffer) -> torch.Tensor:
    """A view of the buffer's memory, float32 or int32, of the buffer's shape."""
    dtype = torch.float32 if buffer.format == "f" else torch.int32
    if not prod(buffer.shape):  # torch makes no view of nothing
        return torch.empty(buffer.shape, dtype=dtype)
    return torch.frombuffer(buffer.span.bytes, dtype=dtype, count=prod(buffer.shape)).view(buffer.shape)


class ReferenceWeight:
    """A matrix in the file's own bytes, which is decoded when it is used or kept decoded while that fits the memory."""

    def __init__(self, matrix: Matrix, *, keep_dense: bool) -> None:
        self.type: QuantType = matrix.type
        self.rows = matrix.rows
        self.columns = matrix.columns
        row_bytes = matrix.type.row_bytes(matrix.columns)
        self._raw = torch.frombuffer(matrix.data, dtype=torch.uint8).view(-1, row_bytes)
        self._order = torch.tensor(matrix.order) if matrix.order is not None else None
        self.bias = torch.tensor(matrix.bias) if matrix.bias is not None else None
        self._dense = self._decode(0, self.rows) if keep_dense else None
        self.nbytes = self.rows * self.columns * 4 if keep_dense else self.rows * row_bytes

    def _decode(self, start: int, end: int) -> torch.Tensor:
        raw = self._raw[start:end] if self._order is None else self._raw[self._order[start:end]]
        return dequantize(self.type, raw, self.columns)

    def rows_of(self, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), columns) float32 rows."""
        if self._dense is not None:
            return self._dense[ids]
        picked = ids if self._order is None else self._order[ids]
        return dequantize(self.type, self._raw[picked], self.columns)

    def dense(self) -> Buffer:
        out = buffer(Arena(buffers_bytes((self.rows, self.columns))), self.rows, self.columns)
        tensor_of(out).copy_(self._dense if self._dense is not None else self._decode(0, self.rows))
        return out

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x (tokens, columns) -> (tokens, rows), plus the bias."""
        if self._dense is not None:
            y = x @ self._dense.T
        else:
            starts = range(0, self.rows, _ROWS_AT_ONCE)
            y = torch.cat([x @ self._decode(s, min(s + _ROWS_AT_ONCE, self.rows)).T for s in starts], dim=1)
        return y if self.bias is None else y + self.bias


def plain(weight: Weight) -> ReferenceWeight:
    """The weight as this backend placed it."""
    assert isinstance(weight, ReferenceWeight)
    return weight
