"""In-situ quantization: the types that users can ask for, and the type that each matrix gets.

``scale_search`` and the kernels do the quantizing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mistralrs.errors import UsageError
from mistralrs.quant.types import TYPES, QuantType

ISQ_TYPES: dict[str, QuantType] = {
    name.lower(): TYPES[name]
    for name in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
}
"""The types that weights can be quantized to, as the user spells them."""

_INSTEAD = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q4_1", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Types for rows that are not a multiple of 256: the smallest with blocks of 32 whose error is not larger."""


@dataclass(frozen=True, slots=True)
class Target:
    """The type to which one matrix is quantized."""

    type: QuantType | None
    """None if the matrix stays as it is stored."""
    reason: str | None = None
    """The reason, for the user, why this is not the requested type; None if it is."""


def isq_type(name: str) -> QuantType:
    """The type of this name, in upper or lower case. Raises ``UsageError`` for an unknown name."""
    if name.lower() not in ISQ_TYPES:
        raise UsageError(f"weights cannot be quantized to {name!r}", hint=f"choose one of: {', '.join(ISQ_TYPES)}")
    return ISQ_TYPES[name.lower()]


def target_of(requested: QuantType, columns: int) -> Target:
    """The target of a matrix with rows of ``columns`` weights if ``requested``, one of ``ISQ_TYPES``, is asked for."""
    if columns % requested.block_len == 0:
        return Target(requested)
    if columns % 32:
        return Target(None, f"rows of {columns} weights do not split in blocks of 32: kept as stored")
    instead = TYPES[_INSTEAD[requested.name]]
    reason = f"rows of {columns} weights do not split in blocks of {requested.block_len}"
    return Target(instead, f"{reason}: {instead.name} instead of {requested.name}")
