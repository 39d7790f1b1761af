"""Rotary frequencies. Plain arithmetic; the angles of a step are made by ``ops``.

Follows Su et al. 2021 (RoFormer) with the pairs (i, i + half), and Llama 3.1's scaling as given by its factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding of the first ``dim`` columns of a head."""

    dim: int
    base: float = 10000.0
    linear_factor: float = 1.0
    """Positions are divided by this."""
    factors: tuple[float, ...] = ()
    """A divisor for each frequency (dim / 2), as Llama 3.1 and Phi-3 have them; empty: none."""
    scale: float = 1.0
    """Factor on cosines and sines, as Phi-3's long contexts have it."""


def inverse_frequencies(rope: Rope) -> list[float]:
    """(dim / 2) angles for one position."""
    half = rope.dim // 2
    factors: Sequence[float] = rope.factors or (1.0,) * half
    return [rope.base ** (-2 * i / rope.dim) / (factors[i] * rope.linear_factor) for i in range(half)]
