"""A LoRA adapter as plain data: low-rank matrices by the part of the model that they act on."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeVar

from mistralrs.models.parts import WeightKey
from mistralrs.ops.weight import Matrix

DIGEST_BYTES = 16

Value = TypeVar("Value")


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
    """(rows,) float32: ``lora_bias``, already scaled."""
    magnitude: array[float] | None = None
    """(rows,) float32: DoRA's magnitudes; of the embedding (hidden size,)."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of the embedding or the head that stand for others (``trainable_token_indices``)."""

    tokens: tuple[int, ...]
    rows: Matrix
    """(tokens, hidden size): one for each of ``tokens``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """An adapter that was read and fits a model."""

    name: str
    source: str
    """Where it came from: a path or a hub id."""
    digest: bytes = b""
    """``digest_of`` it: a hash (16 bytes) of all that decides its results, as matrices and scales do."""
    rank: int
    """The largest; 0 if it has no low-rank matrices."""
    deltas: Mapping[WeightKey, LoraDelta]
    replaced: Mapping[WeightKey, Matrix] = field(default_factory=dict)
    """Matrices that it replaces (``modules_to_save``); only merging applies them."""
    replaced_vectors: Mapping[WeightKey, array[float]] = field(default_factory=dict)
    """Norms that it replaces, as the decoder has them; only merging applies them."""
    replaced_biases: Mapping[WeightKey, array[float]] = field(default_factory=dict)
    """(rows,) biases of matrices and norms that it replaces (``bias``); only merging applies them."""
    replaced_rows: Mapping[WeightKey, TokenRows] = field(default_factory=dict)
    """Of ``embed_tokens`` and ``lm_head``; only merging applies them."""
    base_copies: Mapping[WeightKey, Matrix] = field(default_factory=dict)
    """The base's own embedding and head, which peft stores beside an adapter that acts on them. An adapter that acts
    on a model whose matrices differ is one for another base."""
    invocation_tokens: tuple[int, ...] = ()
    """aLoRA: it acts from the last occurrence of these on. Empty: it acts on every token."""
    acts_alone: str | None = None
    """Why it cannot be mixed with others or weighted: the field's name. None: it can be."""
    merge_only: str | None = None
    """Why it cannot act without being merged: the field's name. None: it can."""


def digest_of(adapter: LoraAdapter) -> bytes:
    """The content hash of an adapter: of every field that decides results, but not of its name, source and digest.

    Parts enter in the order of their keys.
    """
    digest = blake2b(digest_size=DIGEST_BYTES)
    for piece in _pieces(adapter):
        digest.update(len(piece).to_bytes(8, "little"))  # so that two lists of pieces never yield the same bytes
        digest.update(piece)
    return digest.digest()


def _pieces(adapter: LoraAdapter) -> Iterator[bytes | memoryview]:
    yield repr(("tokens", adapter.invocation_tokens)).encode()
    for key, delta in _ordered(adapter.deltas):
        yield repr(("delta", key, delta.scale)).encode()
        for matrix in (delta.a, delta.b):
            yield from _matrix_pieces(matrix)
        for vector in (delta.bias, delta.magnitude):
            yield b"-" if vector is None else vector.tobytes()
    for kind, matrices in (("replaced", adapter.replaced), ("base", adapter.base_copies)):
        for key, matrix in _ordered(matrices):
            yield repr((kind, key)).encode()
            yield from _matrix_pieces(matrix)
    for kind, vectors in (("vector", adapter.replaced_vectors), ("bias", adapter.replaced_biases)):
        for key, vector in _ordered(vectors):
            yield repr((kind, key)).encode()
            yield vector.tobytes()
    for key, rows in _ordered(adapter.replaced_rows):
        yield repr(("rows", key, rows.tokens)).encode()
        yield from _matrix_pieces(rows.rows)


def _matrix_pieces(matrix: Matrix) -> Iterator[bytes | memoryview]:
    order = None if matrix.order is None else [*matrix.order]
    yield repr(("matrix", matrix.type.name, matrix.rows, matrix.columns, order)).encode()
    yield matrix.data
    yield b"-" if matrix.bias is None else matrix.bias.tobytes()


def _ordered(parts: Mapping[WeightKey, Value]) -> list[tuple[WeightKey, Value]]:
    return sorted(parts.items(), key=lambda item: repr(item[0]))
