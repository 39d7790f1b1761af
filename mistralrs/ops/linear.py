"""A matrix of a model with what adapters add to its products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mistralrs.ops.buffer import Buffer
from mistralrs.ops.weight import Weight


@dataclass(frozen=True, slots=True)
class Delta:
    """One adapter's addition to the products of one matrix: scale * b (a x) + bias.

    The form is that of LoRA (Hu et al. 2021) and, with ``row_factor``, of DoRA (Liu et al. 2024).
    """

    a: Weight
    """(rank, columns); of an embedding (rows, rank)."""
    b: Weight
    """(rows, rank); of an embedding (columns, rank)."""
    scale: float = 1.0
    bias: Buffer | None = None
    """(rows,) float32, added as it is."""
    row_factor: Buffer | None = None
    """(rows,) float32: factor on the product without the matrix's bias, the addition included. Such a delta acts
    alone, with weight 1."""


@dataclass(frozen=True, slots=True)
class DeltaShape:
    """The matrix that deltas are added to."""

    rows: int
    columns: int
    lookup: bool = False
    """Whether its rows are looked up, as those of an embedding are, rather than multiplied."""

    def check(self, delta: Delta) -> None:
        """Raises ``ValueError`` for a delta of another shape, or of matrices that are not stored as floats."""
        rank = delta.b.columns
        a = (self.rows, rank) if self.lookup else (rank, self.columns)
        b = (self.columns if self.lookup else self.rows, rank)
        found = (delta.a.rows, delta.a.columns), (delta.b.rows, delta.b.columns)
        if found != (a, b):
            raise ValueError(f"a and b are {found[0]} and {found[1]}, expected {a} and {b}")
        for matrix in (delta.a, delta.b):
            if matrix.type.name not in ("F32", "F16", "BF16"):
                raise ValueError(f"deltas are stored as floats, not as {matrix.type.name}")
        for vector in (delta.bias, delta.row_factor):
            if vector is not None and vector.shape != b[:1]:
                raise ValueError(f"a vector of {vector.shape} does not fit {b[0]} rows")


class DeltaTable(Protocol):
    """The deltas of one matrix by adapter slot. A slot is written only between two steps that do not use it."""

    @property
    def shape(self) -> DeltaShape: ...

    def set(self, slot: int, delta: Delta | None) -> None:
        """Puts a delta into a slot, or empties it. Raises ``ValueError`` for a delta of another shape."""
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix with its bias, and the deltas that adapters add to it."""

    weight: Weight
    deltas: DeltaTable | None = None
    """None: no adapter can act on it."""
    scaling_layer: int = -1
    """Its place on the layer axis of ``StepArgs.scalings``; -1: it has none."""


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter that acts on a sequence's tokens in a step."""

    slot: int
    weight: float = 1.0
    """Factor on its deltas."""
    first_position: int = 0
    """The absolute position of the first token on which it acts."""
