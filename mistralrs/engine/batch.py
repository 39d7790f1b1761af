"""What a step hands to the model: a plan flattened into plain lists, and the flag that stops it early.

Knows slots and positions; no tensor, no sampling.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from mistralrs.engine.scheduler import Plan


@dataclass(frozen=True, slots=True)
class Batch:
    """One flat step over sequences of different lengths."""

    tokens: list[int]
    """(num_tokens,) token ids."""
    positions: list[int]
    """(num_tokens,) absolute positions."""
    slots: list[int]
    """(num_tokens,) ``block * block_size + offset``: where a token's KV goes."""
    seq_starts: list[int]
    """(num_seqs + 1,) ranges of the flat arrays."""
    context_lens: list[int]
    """(num_seqs,) tokens of the sequence once this step is done."""
    block_tables: list[list[int]]
    """(num_seqs,) the blocks that hold those tokens, perhaps more."""
    logit_rows: list[int]
    """Flat indices whose logits are wanted, ascending."""

    @classmethod
    def from_plan(cls, plan: Plan, *, block_size: int) -> Batch:
        """Flattens a plan; sequences keep their order."""
        batch = cls([], [], [], [0], [], [], [])
        for chunk in plan.chunks:
            end = chunk.start + chunk.count
            blocks = list(chunk.sequence.blocks)
            positions = range(chunk.start, end)
            batch.tokens.extend(chunk.sequence.tokens[chunk.start : end])
            batch.positions.extend(positions)
            batch.slots.extend(blocks[p // block_size] * block_size + p % block_size for p in positions)
            batch.seq_starts.append(len(batch.tokens))
            batch.context_lens.append(end)
            batch.block_tables.append(blocks)
            if chunk.samples:
                batch.logit_rows.append(len(batch.tokens) - 1)
        return batch


class Abort:
    """Tells a forward pass that nobody wants its result. Any thread may set it; native code polls ``flag``."""

    __slots__ = ("flag",)

    def __init__(self) -> None:
        self.flag = ctypes.c_int32(0)
        """Not zero: stop. Its address stays valid as long as this object lives."""

    def set(self) -> None:
        self.flag.value = 1

    def clear(self) -> None:
        self.flag.value = 0

    def is_set(self) -> bool:
        return self.flag.value != 0
