"""The table of storage types: the weights and the bytes of a block. The ids are ggml's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuantType:
    """A way to store one weight matrix. Rows are split in blocks of ``block_len`` weights of ``block_bytes`` bytes."""

    name: str
    ggml_id: int
    block_len: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of ``columns`` weights; ``columns`` must be a multiple of ``block_len``."""
        return columns // self.block_len * self.block_bytes


def _by_name(types: Iterable[QuantType]) -> dict[str, QuantType]:
    return {t.name: t for t in types}


TYPES: dict[str, QuantType] = _by_name(
    (
        QuantType("F32", 0, 1, 4),
        QuantType("F16", 1, 1, 2),
        QuantType("Q4_0", 2, 32, 18),
        QuantType("Q4_1", 3, 32, 20),
        QuantType("Q5_0", 6, 32, 22),
        QuantType("Q5_1", 7, 32, 24),
        QuantType("Q8_0", 8, 32, 34),
        QuantType("Q2_K", 10, 256, 84),
        QuantType("Q3_K", 11, 256, 110),
        QuantType("Q4_K", 12, 256, 144),
        QuantType("Q5_K", 13, 256, 176),
        QuantType("Q6_K", 14, 256, 210),
        QuantType("BF16", 30, 1, 2),
    )
)
"""Every type that can be computed with, by name."""

K_TYPES = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})
"""Types with blocks of 256 weights, whose columns of activations share a scale by 256 (``Backend.project``)."""

_CODEBOOKS = _by_name(
    (
        QuantType("IQ2_XXS", 16, 256, 66),
        QuantType("IQ2_XS", 17, 256, 74),
        QuantType("IQ3_XXS", 18, 256, 98),
        QuantType("IQ1_S", 19, 256, 50),
        QuantType("IQ4_NL", 20, 32, 18),
        QuantType("IQ3_S", 21, 256, 110),
        QuantType("IQ2_S", 22, 256, 82),
        QuantType("IQ4_XS", 23, 256, 136),
        QuantType("IQ1_M", 29, 256, 56),
        QuantType("TQ1_0", 34, 256, 54),
        QuantType("TQ2_0", 35, 256, 66),
        QuantType("MXFP4", 39, 32, 17),
    )
)

# Old layouts of types, under today's ids, in files from before June 2023. V1: up to ggjt version 1, V2: ggjt version 2.
_OLD_WITHOUT_MINIMUM = _by_name(
    (
        QuantType("Q4_0_V1", 2, 32, 20),
        QuantType("Q4_0_V2", 2, 32, 20),
        QuantType("Q4_2", 4, 16, 10),
        QuantType("Q5_0_V1", 6, 32, 22),
        QuantType("Q8_0_V1", 8, 32, 36),
    )
)

EXPANDED: dict[str, QuantType] = _CODEBOOKS | _OLD_WITHOUT_MINIMUM
"""Types that are converted to small integers and scales at load, without loss: see ``quant.requantize_lossless``."""

DECODED: dict[str, QuantType] = _by_name(
    (
        QuantType("Q4_1_V1", 3, 32, 24),
        QuantType("Q4_1_V2", 3, 32, 24),
        QuantType("Q4_3", 5, 16, 12),
        QuantType("Q5_1_V1", 7, 32, 24),
    )
)
"""Types of old files that are decoded to F32 at load: their blocks have a minimum, which no current type can store."""

BY_GGML_ID: dict[int, QuantType] = {t.ggml_id: t for t in (*TYPES.values(), *_CODEBOOKS.values())}
"""The types that a GGUF file may have, by id."""

I8 = QuantType("I8", 100, 32, 40)
"""No file's type: what ``EXPANDED`` becomes. A block is two float32 scales, each for 16 columns, and 32 int8 values."""
