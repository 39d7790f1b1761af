"""How much memory adapters take in a model's slots, so that the KV cache leaves it to them."""

from __future__ import annotations

from dataclasses import replace

from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.adapters.lora.lora_targets import matrices_of
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES

_FLOAT32_BYTES = 4


def adapter_bytes(adapter: LoraAdapter, backend: Backend, *, in_half_precision: bool) -> int:
    """Returns the bytes that an adapter takes in a slot. ``in_half_precision``: as of ``AdapterPlacement``."""
    deltas = adapter.deltas.values()
    vectors = [vector for delta in deltas for vector in (delta.bias, delta.magnitude) if vector is not None]
    matrices = [matrix for delta in deltas for matrix in (delta.a, delta.b)]
    if in_half_precision:
        matrices = [_halved(matrix) if matrix.type.name == "F32" else matrix for matrix in matrices]
    return sum(map(backend.placed_bytes, matrices)) + _FLOAT32_BYTES * sum(map(len, vectors))


def largest_adapter_bytes(
    spec: DecoderSpec, rank: int, backend: Backend, *, in_half_precision: bool, experts: bool = True
) -> int:
    """Returns the bytes that an adapter of this rank takes in a slot if it acts on every matrix of the model, or on
    every one but those of ``experts``."""
    type_ = TYPES["F16" if in_half_precision else "F32"]
    return sum(
        backend.placed_bytes(Matrix(key.part, type_, *shape, memoryview(b"")))
        for key, rows, columns in matrices_of(spec)
        for shape in ((rank, columns), (rows, rank))
        if experts or key.expert is None
    )


def _halved(matrix: Matrix) -> Matrix:
    return replace(matrix, type=TYPES["F16"], data=memoryview(b""), order=None)
