"""Merges adapters into a model's matrices while they are loaded."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from mistralrs.adapters.lora.lora import DIGEST_BYTES, LoraAdapter, LoraDelta
from mistralrs.errors import LoadError
from mistralrs.models.parts import WeightKey
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.weight import Matrix

if TYPE_CHECKING:
    import torch

_EMBEDDING, _HEAD = WeightKey("embed_tokens"), WeightKey("lm_head")


@dataclass(frozen=True, slots=True)
class WeightedAdapter:
    """An adapter and the factor on what it adds."""

    adapter: LoraAdapter
    weight: float = 1.0


class LoraMerge:
    """A ``models.parts.WeightMerge``: the weighted sum of adapters' additions, in float32."""

    def __init__(self, adapters: Sequence[WeightedAdapter], *, spec: DecoderSpec) -> None:
        """``spec``: that of the model, whose head may be its embedding. Raises ``LoadError`` for adapters that cannot
        be merged, or not with these weights or each other."""
        for used in adapters:
            _check_mergeable(used, alone=len(adapters) == 1)
        self._adapters = tuple(adapters)
        self._tied = spec.tied_head
        self._keys = _changed(adapters, tied=spec.tied_head)

    @property
    def digest(self) -> bytes:
        """Hash of the adapters' contents and weights, in their order."""
        digest = blake2b(digest_size=DIGEST_BYTES)
        for used in self._adapters:
            digest.update(used.adapter.digest)
            digest.update(array("d", [used.weight]).tobytes())
        return digest.digest()

    @property
    def unties_head(self) -> bool:
        """Whether head and embedding, which are one matrix in the base, differ once the adapters are merged.

        As in peft: what acts on one of them leaves the other as it was, but for ``trainable_token_indices`` of the
        embedding.
        """
        if not self._tied:
            return False
        for used in self._adapters:
            adapter = used.adapter
            if {_EMBEDDING, _HEAD} & (adapter.deltas.keys() | adapter.replaced.keys()):
                return True
            if _HEAD in adapter.replaced_rows or _HEAD in adapter.replaced_biases:
                return True
        return False

    def changes(self, key: WeightKey) -> bool:
        """Returns whether ``merged`` changes the values of this matrix."""
        return key in self._keys

    def merged(self, key: WeightKey, values: memoryview) -> memoryview:
        """Returns the new float32 values (rows, columns) of a part, in the decoder's order of rows."""
        import torch

        assert values.shape is not None
        base = torch.frombuffer(values, dtype=torch.float32).view(values.shape)
        return self._merged(key, base).contiguous().numpy().data

    def _merged(self, key: WeightKey, values: torch.Tensor) -> torch.Tensor:
        for used in self._adapters:
            values = self._with_copy(used.adapter, key, values)
        out = values.clone()
        for used in self._adapters:
            adapter = used.adapter
            if key in adapter.replaced:
                out = values_of(adapter.replaced[key])
            delta = adapter.deltas.get(key)
            if delta is not None:
                out += used.weight * low_rank_product(key, delta)
                if delta.magnitude is not None:
                    out = _rescaled(key, delta.magnitude, out)
            rows = adapter.replaced_rows.get(key)
            if rows is None and key == _HEAD and self._tied and _HEAD not in adapter.replaced:
                rows = adapter.replaced_rows.get(_EMBEDDING)
            if rows is not None:
                out[list(rows.tokens)] = values_of(rows.rows)
        return out

    def _with_copy(self, adapter: LoraAdapter, key: WeightKey, values: torch.Tensor) -> torch.Tensor:
        """The base's values, or the copy of them that the adapter brings, as peft reads it."""
        copies = adapter.base_copies
        keys = (_EMBEDDING, _HEAD) if self._tied and key in (_EMBEDDING, _HEAD) else (key,)
        copy = next((copies[key] for key in keys if key in copies), None)
        return values if copy is None else values_of(copy)

    def merged_bias(self, key: WeightKey, bias: array[float] | None) -> array[float] | None:
        """Returns the float32 bias (rows,) of a matrix or norm, new or as it was; None: it has none."""
        for used in self._adapters:
            adapter = used.adapter
            copy = adapter.base_copies.get(key)
            new = adapter.replaced_biases.get(key) or (copy.bias if copy else None)
            if new is not None:
                if bias is None:
                    raise LoadError(
                        f"{adapter.source}: bias: has one of {shown(key)}, which has none in the base",
                        hint="the adapter is for another base",
                    )
                bias = new
            delta = adapter.deltas.get(key)
            if delta is not None and delta.bias is not None:
                old = bias or array("f", bytes(4 * len(delta.bias)))
                added = zip(old, delta.bias, strict=True)
                bias = array("f", (value + used.weight * more for value, more in added))
        return bias

    def merged_norm(self, key: WeightKey, values: array[float]) -> array[float]:
        """Returns the float32 weight (length,) of a norm as the decoder has it, new or as it was."""
        for used in self._adapters:
            values = used.adapter.replaced_vectors.get(key, values)
        return values


def _changed(adapters: Sequence[WeightedAdapter], *, tied: bool) -> frozenset[WeightKey]:
    """The matrices whose values change. ``tied``: what changes embedding and head together counts for both."""
    keys: set[WeightKey] = set()
    for used in adapters:
        adapter = used.adapter
        keys |= adapter.deltas.keys() | adapter.replaced.keys() | adapter.replaced_rows.keys()
        keys |= adapter.base_copies.keys()
        if tied and (_EMBEDDING in adapter.replaced_rows or {_EMBEDDING, _HEAD} & adapter.base_copies.keys()):
            keys |= {_EMBEDDING, _HEAD}
    return frozenset(keys)


def _check_mergeable(used: WeightedAdapter, *, alone: bool) -> None:
    adapter = used.adapter
    if not math.isfinite(used.weight):
        raise LoadError(f"{adapter.source}: the weight is {used.weight}, expected a number", hint="such as 0.5")
    if adapter.invocation_tokens:
        raise LoadError(
            f"{adapter.source}: alora_invocation_tokens: an adapter that acts from these tokens on cannot be merged",
            hint="serve it without merging",
        )
    if adapter.acts_alone and not alone:
        raise LoadError(
            f"{adapter.source}: {adapter.acts_alone}: such an adapter cannot be mixed with others",
            hint="merge it alone",
        )
    if adapter.acts_alone and used.weight != 1.0:
        raise LoadError(
            f"{adapter.source}: {adapter.acts_alone}: such an adapter has the weight 1, not {used.weight}",
            hint="leave its weight out",
        )


def low_rank_product(key: WeightKey, delta: LoraDelta) -> torch.Tensor:
    """scale * b a of a part, float32 (rows, columns); of the embedding scale * a b^T."""
    a, b = values_of(delta.a), values_of(delta.b)
    return delta.scale * (a @ b.T if key == _EMBEDDING else b @ a)


def _rescaled(key: WeightKey, magnitude: array[float], values: torch.Tensor) -> torch.Tensor:
    """DoRA: each row with the length that ``magnitude`` gives it; of the embedding each column."""
    import torch

    dim = 0 if key == _EMBEDDING else 1
    lengths = torch.linalg.norm(values, dim=dim, keepdim=True)
    if not bool((lengths > 0).all()):
        raise LoadError(
            f"use_dora: {shown(key)} has a row of zeros in the base, which has no direction",
            hint="the adapter is for another base",
        )
    factors: torch.Tensor = torch.tensor(magnitude, dtype=torch.float32).unsqueeze(dim) / lengths
    return values * factors


def values_of(matrix: Matrix) -> torch.Tensor:
    """The values of a matrix that is stored as floats, float32 (rows, columns), in the wanted order of rows."""
    import torch

    from mistralrs.quant.dequantize import dequantize

    raw = torch.frombuffer(matrix.data, dtype=torch.uint8).view(matrix.rows, -1)
    values = dequantize(matrix.type, raw, matrix.columns)
    return values if matrix.order is None else values[list(matrix.order)]


def shown(key: WeightKey) -> str:
    """Returns a part by its name, layer and expert, for errors."""
    where = "" if key.layer is None else f" of layer {key.layer}"
    return f"{key.part}{where}" + ("" if key.expert is None else f", expert {key.expert}")
