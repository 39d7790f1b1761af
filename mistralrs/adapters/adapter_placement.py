"""Puts adapters into the slots of a model: matrices on its backend, and tables of deltas that point to them."""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mistralrs.adapters.lora.lora import LoraAdapter, LoraDelta
from mistralrs.adapters.lora.lora_merge import low_rank_product, shown, values_of
from mistralrs.errors import LoadError
from mistralrs.models.decoder import Decoder
from mistralrs.models.parts import WeightKey
from mistralrs.ops.backend import Backend
from mistralrs.ops.linear import Delta
from mistralrs.ops.memory import available_bytes
from mistralrs.ops.weight import Matrix, Weight
from mistralrs.quant.types import TYPES

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PlacedDeltas = Mapping[WeightKey, Delta]
"""An adapter's deltas on a backend."""

_FLOATS = frozenset({"F32", "F16", "BF16"})
_HALF_RANGE = 2.0**15
"""What the largest value of a matrix is brought near to before it is rounded to half precision."""


class AdapterPlacement:
    """Places adapters for one model. One thread at a time may call ``prepare``."""

    def __init__(self, decoder: Decoder, backend: Backend, *, in_half_precision: bool) -> None:
        """``in_half_precision``: float32 matrices of adapters are kept in float16, which halves what decoding reads and
        costs a relative error of 2 ** -11 of an addition."""
        self._linears = decoder.linears
        self._backend = backend
        self._half = in_half_precision

    def check(self, adapter: LoraAdapter) -> None:
        """Raises ``LoadError`` for an adapter that can act only where it is merged, and for one of another base."""
        if adapter.merge_only is not None:
            raise LoadError(
                f"{adapter.source}: {adapter.merge_only}: such an adapter changes the base itself, and cannot act "
                "beside requests without it",
                hint="merge it into the model: --merge, or mistralrs adapter merge",
            )
        self._check_copies(adapter)

    def prepare(self, adapter: LoraAdapter) -> PlacedDeltas:
        """Returns the adapter's deltas with their matrices placed. The model may compute meanwhile.

        Raises ``LoadError`` as ``check`` does, and for an adapter for which there is not enough memory.
        """
        self.check(adapter)
        kept = {key: self._kept(key, delta) for key, delta in adapter.deltas.items()}
        matrices = [matrix for delta in kept.values() for matrix in (delta.a, delta.b)]
        wanted, free = sum(map(self._backend.placed_bytes, matrices)), available_bytes()
        if wanted > free:
            raise LoadError(
                f"adapter {adapter.name} takes {wanted / 2**20:.1f} MiB, {free / 2**20:.1f} MiB of memory are free",
                hint="lower --kv-memory or --max-adapters, or close other programs",
            )
        self._backend.reserve(wanted)
        return {key: self._placed(key, delta) for key, delta in kept.items()}

    def write(self, slot: int, deltas: PlacedDeltas) -> None:
        """Fills a slot. Must run between two steps of the model, none of which uses the slot."""
        for key, linear in self._linears.items():
            assert linear.deltas is not None
            linear.deltas.set(slot, deltas.get(key))

    def clear(self, slot: int) -> None:
        """Empties a slot. Must run between two steps of the model, none of which uses the slot."""
        self.write(slot, {})

    def _kept(self, key: WeightKey, delta: LoraDelta) -> LoraDelta:
        """The delta with its matrices in the type in which they are placed."""
        if key not in self._linears:
            raise LoadError(f"the model has no {shown(key)} that an adapter could act on")
        if not self._half:
            return delta
        (a, a_scale), (b, b_scale) = _halved(delta.a), _halved(delta.b)
        return replace(delta, a=a, b=b, scale=delta.scale / a_scale / b_scale)

    def _placed(self, key: WeightKey, delta: LoraDelta) -> Delta:
        backend = self._backend
        factor = None if delta.magnitude is None else self._row_factor(key, delta, delta.magnitude)
        return Delta(
            backend.place(delta.a),
            backend.place(delta.b),
            delta.scale,
            None if delta.bias is None else backend.vector(delta.bias),
            None if factor is None else backend.vector(factor),
        )

    def _row_factor(self, key: WeightKey, delta: LoraDelta, magnitude: array[float]) -> array[float]:
        """Returns DoRA's magnitudes over the lengths of the rows of the adapted base; of the embedding, its columns."""
        import torch

        whole = _dense(self._linears[key].weight) + low_rank_product(key, delta)
        lengths = torch.linalg.norm(whole, dim=0 if key.part == "embed_tokens" else 1)
        if not bool((lengths > 0).all()):
            raise LoadError(f"use_dora: {shown(key)} has a row of zeros, which has no direction")
        return array("f", (torch.tensor(magnitude) / lengths).tolist())

    def _check_copies(self, adapter: LoraAdapter) -> None:
        """Compares the adapter's copies of the base's matrices with those of a base that is stored as floats."""
        import torch

        dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        for key, copy in adapter.base_copies.items():
            weight = self._linears[key].weight
            if weight.type.name not in _FLOATS:
                reason = "%s: its copy of the base's %s is not used: the model's own is quantized"
                logger.info(reason, adapter.source, shown(key))
                continue
            rounded = values_of(copy).to(dtypes[weight.type.name]).float()
            if not torch.equal(rounded, _dense(weight)):
                raise LoadError(
                    f"{adapter.source}: its copy of the base's {shown(key)} is not the model's",
                    hint="the adapter is for another base; merging it takes its copy: --merge",
                )


def _dense(weight: Weight) -> torch.Tensor:
    import torch

    return torch.frombuffer(weight.dense().values, dtype=torch.float32).view(weight.rows, weight.columns)


def _halved(matrix: Matrix) -> tuple[Matrix, float]:
    """Returns a float32 matrix in float16, its rows in their order, and the power of two by which it was multiplied;
    others as they are."""
    if matrix.type.name != "F32":
        return matrix, 1.0
    import torch

    values = values_of(matrix)
    largest = float(values.abs().max())
    scale = 2.0 ** math.floor(math.log2(_HALF_RANGE / largest)) if 0 < largest < math.inf else 1.0
    data = (values * scale).to(torch.float16).view(torch.uint8).numpy().data.cast("B")
    return replace(matrix, type=TYPES["F16"], data=data, order=None), scale
