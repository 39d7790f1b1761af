"""A LoRA adapter as the tensors of a file: parts that share a tensor of the model become one pair of matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistralrs.adapters.lora.gguf_lora import float_values
from mistralrs.adapters.lora.lora import LoraAdapter, LoraDelta
from mistralrs.adapters.lora.lora_targets import Target, stored_order, targets_of
from mistralrs.errors import LoadError
from mistralrs.models.architecture import WeightsMapping
from mistralrs.models.spec import DecoderSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The addition to a tensor of the model: scale * b a."""

    tensor: str
    """The model's tensor."""
    a: torch.Tensor
    """(rank, columns), of a stack (experts, rank, columns), of the embedding (vocabulary, rank)."""
    b: torch.Tensor
    """(rows, rank) in the order of the form, of a stack (experts, rows, rank), of the embedding (hidden size, rank)."""
    scale: float
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        return self.b.shape[-1]


def pairs_of(adapter: LoraAdapter, form: WeightsMapping, spec: DecoderSpec) -> list[LoraPair]:
    """The adapter's additions by tensor, in the order of the model. Floats keep their type where nothing is computed.

    Raises ``LoadError`` for an adapter that is more than low-rank matrices, and for a part that the form has not.
    """
    _refuse_others(adapter)
    left = set(adapter.deltas)
    pairs = []
    for tensor, targets in targets_of(form, spec, alternatives=False).items():
        present = [target for target in targets if target.key in adapter.deltas]
        left -= {target.key for target in present}
        if present:
            pairs.append(_pair(tensor, targets, present, adapter, form, spec))
    if left:
        part = min(key.part for key in left)
        raise LoadError(
            f"{adapter.source} acts on {part}, which files of this model do not have", hint="convert it without that"
        )
    return pairs


def _refuse_others(adapter: LoraAdapter) -> None:
    extra = [field for field, value in _others(adapter) if value]
    if extra:
        raise LoadError(
            f"{adapter.source} has {' and '.join(extra)}, which a file of low-rank matrices cannot hold",
            hint="merge it into its base model instead",
        )


def _others(adapter: LoraAdapter) -> Iterator[tuple[str, bool]]:
    yield "DoRA magnitudes (use_dora)", any(delta.magnitude is not None for delta in adapter.deltas.values())
    yield "biases (lora_bias)", any(delta.bias is not None for delta in adapter.deltas.values())
    yield "whole modules (modules_to_save)", bool(adapter.replaced or adapter.replaced_vectors)
    yield "the model's biases (bias)", bool(adapter.replaced_biases)
    yield "rows of tokens (trainable_token_indices)", bool(adapter.replaced_rows)


def _pair(
    tensor: str,
    targets: Sequence[Target],
    present: Sequence[Target],
    adapter: LoraAdapter,
    form: WeightsMapping,
    spec: DecoderSpec,
) -> LoraPair:
    import torch

    deltas = [adapter.deltas[target.key] for target in present]
    a = [float_values(delta.a) for delta in deltas]
    b = [float_values(delta.b) for delta in deltas]
    if present[0].key.part == "embed_tokens":
        return LoraPair(tensor, a[0], b[0], deltas[0].scale, is_embedding=True)
    for i, target in enumerate(present):
        order = stored_order(form, spec, target)
        if order is not None:
            b[i] = b[i][torch.argsort(torch.tensor(order, dtype=torch.long))]
    if len(targets) == 1:
        return LoraPair(tensor, a[0], b[0], deltas[0].scale)
    if targets[0].stacked:
        return _stacked(tensor, targets, present, deltas, a, b)
    return _joined(tensor, targets, present, deltas, a, b)


def _stacked(
    tensor: str,
    targets: Sequence[Target],
    present: Sequence[Target],
    deltas: Sequence[LoraDelta],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
) -> LoraPair:
    """One pair for all experts. Experts of a lower rank, and those that have none, are filled up with zeros."""
    import torch

    rank = max(each.shape[0] for each in a)
    rows, columns, dtype = targets[0].rows, targets[0].columns, _common_type((*a, *b))
    all_a = torch.zeros(len(targets), rank, columns, dtype=dtype)
    all_b = torch.zeros(len(targets), rows, rank, dtype=dtype)
    scale = deltas[0].scale
    if any(delta.scale != scale for delta in deltas):
        all_b, scale = all_b.float(), 1.0
        b = [each.float() * delta.scale for each, delta in zip(b, deltas, strict=True)]
    for target, one_a, one_b in zip(present, a, b, strict=True):
        expert = target.key.expert or 0
        all_a[expert, : len(one_a)] = one_a.to(all_a.dtype)
        all_b[expert, :, : len(one_a)] = one_b.to(all_b.dtype)
    return LoraPair(tensor, all_a, all_b, scale)


def _joined(
    tensor: str,
    targets: Sequence[Target],
    present: Sequence[Target],
    deltas: Sequence[LoraDelta],
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
) -> LoraPair:
    """One pair for parts that stand below each other: with one A if they share it, otherwise with all of them."""
    import torch

    dtype = _common_type((*a, *b))
    scale = deltas[0].scale
    if any(delta.scale != scale for delta in deltas):
        dtype, scale = torch.float32, 1.0
        b = [each.float() * delta.scale for each, delta in zip(b, deltas, strict=True)]
    shared = all(torch.equal(each, a[0]) for each in a)
    joined_a = a[0].to(dtype) if shared else torch.cat([each.to(dtype) for each in a])
    joined_b = torch.zeros(sum(target.rows for target in targets), len(joined_a), dtype=dtype)
    column = 0
    for target, one_a, one_b in zip(present, a, b, strict=True):
        rows = slice(target.first_row, target.first_row + target.rows)
        joined_b[rows, column : column + len(one_a)] = one_b.to(dtype)
        column += 0 if shared else len(one_a)
    return LoraPair(tensor, joined_a, joined_b, scale)


def _common_type(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """Their type if it is one, otherwise float32, which holds each exactly."""
    import torch

    return tensors[0].dtype if len({tensor.dtype for tensor in tensors}) == 1 else torch.float32


def with_scale(pair: LoraPair, scale: float) -> LoraPair:
    """The same addition with another factor, which is not 0: B takes up the rest, and is float32 then."""
    if math.isclose(pair.scale, scale, rel_tol=1e-6):
        return pair
    b = pair.b.double() * (pair.scale / scale)
    return LoraPair(pair.tensor, pair.a, b.float(), scale, pair.is_embedding)


def stored_type(values: torch.Tensor) -> str:
    """The name of the type as files have it."""
    import torch

    return {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[values.dtype]


def stored_bytes(values: torch.Tensor) -> memoryview:
    """The bytes of a tensor, row after row, with format "B"."""
    import torch

    return values.contiguous().view(torch.uint8).numpy().data.cast("B")
