"""Rotary frequencies, in plain arithmetic; ``ops`` computes the angles of a step.

Sources: Su et al. 2021 (RoFormer) with the pairs (i, i + half), YaRN (Peng et al. 2023), and the frequency divisors
of Llama 3.1 and Phi-3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """YaRN's scaling: frequencies with few rotations in the original context are divided by ``factor``, those with many
    are kept, and those between are blended."""

    factor: float
    original_context: float
    """The context in tokens before scaling."""
    beta_fast: float = 32.0
    """A frequency with this many rotations in the original context, or more, is kept."""
    beta_slow: float = 1.0
    """A frequency with this many rotations, or fewer, is divided."""
    truncate: bool = True
    """The two borders are rounded outwards to whole frequencies."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding of the first ``dim`` columns of a head."""

    dim: int
    base: float = 10000.0
    linear_factor: float = 1.0
    """The divisor of positions."""
    factors: tuple[float, ...] = ()
    """A divisor for each frequency (dim / 2), as in Llama 3.1 and Phi-3; empty: none."""
    scale: float = 1.0
    """Factor on cosines and sines, as in scaled contexts."""
    yarn: Yarn | None = None


def inverse_frequencies(rope: Rope) -> list[float]:
    """Returns (dim / 2) angles in radians for one step of the position."""
    half = rope.dim // 2
    factors: Sequence[float] = rope.factors or (1.0,) * half
    if rope.yarn is not None:
        factors = _yarn_factors(rope.yarn, rope.dim, rope.base)
    return [rope.base ** (-2 * i / rope.dim) / (factors[i] * rope.linear_factor) for i in range(half)]


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """Returns YaRN's factor on cosines and sines for a context that is ``factor`` times as long."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_factors(yarn: Yarn, dim: int, base: float) -> list[float]:
    def border(turns: float) -> float:
        """Returns the index, from the fastest frequency, of the one with so many rotations in the original context."""
        return dim * math.log(yarn.original_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = border(yarn.beta_fast), border(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    stretched = [min(max((i - low) / width, 0.0), 1.0) for i in range(dim // 2)]
    return [1 / (part / yarn.factor + 1 - part) for part in stretched]
