"""The table of storage types: how many weights make a block and how many bytes a block takes.

Knows no device, no kernel and no file format; the ids are those of ggml.
"""

from __future__ import annotations

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


TYPES: dict[str, QuantType] = {
    t.name: t
    for t in (
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
}
"""Every type that can be computed with, by name."""

BY_GGML_ID: dict[int, QuantType] = {t.ggml_id: t for t in TYPES.values()}
