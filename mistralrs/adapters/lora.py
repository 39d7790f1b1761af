"""A LoRA adapter as plain data: low-rank matrices by the part of the model that they act on."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from mistralrs.models.parts import WeightKey
from mistralrs.ops.weight import Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraDelta:
    """An adapter's addition to one part: scale * b (a x) + bias.

    Rows of ``b`` stand in the order of Hugging Face, which is that of the decoder.
    """

    a: Matrix
    """(rank, columns), of a type that is stored as floats; of the embedding (vocabulary, rank)."""
    b: Matrix
    """(rows, rank); of the embedding (hidden size, rank)."""
    scale: float
    """The factor of the file: alpha / rank, or alpha / sqrt(rank)."""
    bias: array[float] | None = None
    """(rows,) float32: ``lora_bias``, already scaled, and what ``bias`` changed in the part's own bias."""
    magnitude: array[float] | None = None
    """(rows,) float32: DoRA's magnitudes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """An adapter that was read and fits a model."""

    name: str
    source: str
    """Where it came from: a path or a hub id."""
    digest: bytes
    """Hash (16 bytes) of all that decides its results: matrices, scales and the tokens that invoke it."""
    rank: int
    """The largest."""
    deltas: Mapping[WeightKey, LoraDelta]
    replaced: Mapping[WeightKey, Matrix] = field(default_factory=dict)
    """Parts that it replaces (``modules_to_save``, ``trainable_token_indices``); only merging applies them."""
    invocation_tokens: tuple[int, ...] = ()
    """aLoRA: it acts from the last occurrence of these on. Empty: it acts on every token."""
    acts_alone: str | None = None
    """Why it cannot be mixed with others or weighted: the field's name. None: it can be."""
