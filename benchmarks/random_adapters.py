"""LoRA adapters with random numbers on every matrix of every layer. Speed does not depend on their values."""

from __future__ import annotations

import random
from array import array

from mistralrs.adapters.lora.lora import LoraAdapter, LoraDelta
from mistralrs.models.parts import WeightKey, layer_shapes
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES


def layer_matrices(spec: DecoderSpec) -> dict[WeightKey, tuple[int, int]]:
    """Rows and columns of the matrices of all layers, without the experts' ones."""
    shapes = [(part, (shape[0], shape[1])) for part, shape in layer_shapes(spec).items() if len(shape) == 2]
    return {WeightKey(part, layer): shape for layer in range(len(spec.layers)) for part, shape in shapes}


def random_adapter(
    spec: DecoderSpec, name: str, *, rank: int, seed: int, invocation_tokens: tuple[int, ...] = ()
) -> LoraAdapter:
    """A float16 adapter of this rank. With ``invocation_tokens`` it is an aLoRA."""
    source = random.Random(seed)
    deltas = {
        key: LoraDelta(a=random_matrix(source, rank, columns), b=random_matrix(source, rows, rank), scale=1.0)
        for key, (rows, columns) in layer_matrices(spec).items()
    }
    return LoraAdapter(name=name, source="random", rank=rank, deltas=deltas, invocation_tokens=invocation_tokens)


def random_matrix(source: random.Random, rows: int, columns: int) -> Matrix:
    """Float16 values of small powers of two, of either sign."""
    values = array("H", source.choices((0x2000, 0xA000, 0x1C00), k=rows * columns))
    return Matrix("delta", TYPES["F16"], rows, columns, memoryview(bytearray(values.tobytes())))
