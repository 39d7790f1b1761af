"""In-situ quantization: which types can be asked for, and what each matrix of a model then gets.

Knows shapes and types; not how blocks are found (``search`` and the kernels), nor which matrices a model has.
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
"""For rows that are no multiple of 256: the smallest type with blocks of 32 whose error is no larger."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one matrix becomes."""

    type: QuantType | None
    """None: it stays as it is stored."""
    reason: str | None = None
    """Why this is not the type that was asked for, to be shown to the user; None: it is."""


def isq_type(name: str) -> QuantType:
    """The type that the user's word names, in any case. Raises ``UsageError`` for another word."""
    if name.lower() not in ISQ_TYPES:
        raise UsageError(f"weights cannot be quantized to {name!r}", hint=f"choose one of: {', '.join(ISQ_TYPES)}")
    return ISQ_TYPES[name.lower()]


def target_of(wanted: QuantType, columns: int) -> Target:
    """What a matrix with rows of ``columns`` weights becomes where ``wanted``, one of ``ISQ_TYPES``, is asked for."""
    if columns % wanted.block_len == 0:
        return Target(wanted)
    if columns % 32:
        return Target(None, f"rows of {columns} weights do not split in blocks of 32: kept as stored")
    instead = TYPES[_INSTEAD[wanted.name]]
    reason = f"rows of {columns} weights do not split in blocks of {wanted.block_len}"
    return Target(instead, f"{reason}: {instead.name} instead of {wanted.name}")
