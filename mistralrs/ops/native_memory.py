"""Weights and KV cache in the layouts that the CPU kernels read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from mistralrs_kernels import cpu

from mistralrs.ops.arena import HUGE_PAGE, Arena, buffer, buffers_bytes
from mistralrs.ops.backend import KvShape
from mistralrs.ops.buffer import Buffer, Span
from mistralrs.ops.native_checks import check_kv
from mistralrs.ops.weight import Matrix, Weight
from mistralrs.quant.types import QuantType


class PackedWeight:
    """A matrix in panels of 16 rows (``csrc/layout.h``), or one that stays in the layout of its file (``in_place``)."""

    def __init__(self, matrix: Matrix, span: Span, bias: Buffer | None, table: cpu.Table) -> None:
        """``span``: the panels, or the rows of ``matrix.data`` where they lie."""
        self.name = matrix.name
        self.type: QuantType = matrix.type
        self.rows = matrix.rows
        self.columns = matrix.columns
        self.nbytes = 0 if matrix.in_place else len(span.bytes)
        order = matrix.order if matrix.in_place else None
        self._memory = (span, bias, order)
        self._table = table
        self.struct = cpu.Weight(
            span.address,
            bias.address if bias else None,
            matrix.type.ggml_id,
            matrix.rows,
            matrix.columns,
            matrix.type.row_bytes(matrix.columns) if matrix.in_place else 0,
            None if order is None else order.buffer_info()[0],
        )

    def dense(self) -> Buffer:
        out = buffer(Arena(buffers_bytes((self.rows, self.columns))), self.rows, self.columns)
        for row in range(self.rows):
            self._table.unpack_row(ctypes.byref(self.struct), row, out.address + row * self.columns * 4)
        return out


_KV_TYPES = {"f16": 0, "f32": 1, "bf16": 2, "q8_0": 3}


class PackedKv:
    """The cache as one span a layer; ``attention_float.h``, ``attention_bf16.h`` and ``attention_int8.h`` say what a
    block holds."""

    def __init__(self, shape: KvShape) -> None:
        check_kv(shape)
        self.shape = shape
        self.type = _KV_TYPES[shape.dtype]
        self.block_bytes: int = cpu.load().mrs_kv_block_bytes(self.type, shape.kv_heads, shape.head_dim)
        self.nbytes = self.block_bytes * sum(shape.blocks)
        arena = Arena(self.nbytes + 64 * len(shape.blocks))
        # huge pages are read faster, but clearing one in each layer would delay the first token of a short prompt
        self.layers = [arena.take(self.block_bytes * blocks, huge_pages_after=HUGE_PAGE) for blocks in shape.blocks]

    def export_block(self, layers: Sequence[int], block: int) -> bytes:
        size = self.block_bytes
        return b"".join(self.layers[layer].bytes[block * size : (block + 1) * size] for layer in layers)

    def import_block(self, layers: Sequence[int], block: int, data: bytes) -> None:
        size = self.block_bytes
        if len(data) != len(layers) * size:
            raise ValueError(f"a block of {len(layers)} layers has {len(layers) * size} bytes, not {len(data)}")
        for place, layer in enumerate(layers):
            self.layers[layer].bytes[block * size : (block + 1) * size] = data[place * size : (place + 1) * size]


def packed_weight(weight: Weight) -> PackedWeight:
    assert isinstance(weight, PackedWeight)
    return weight
