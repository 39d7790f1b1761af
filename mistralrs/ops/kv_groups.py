"""KV groups: layers with the same window share block tables, because they have done with a block at the same time.

Knows positions and counts of blocks; no tensor, no sequence and no layer. Imports nothing of ours, so that policy may
read it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvGroup:
    """The part of the KV cache that the layers with one window share."""

    num_blocks: int
    window: int = 0
    """A position sees itself and window - 1 before it; 0: all."""

    def max_context(self, length: int, *, step: int, block_size: int) -> int:
        """How many of ``length`` tokens a sequence alone can have if it computes at most ``step`` at once."""
        if self.num_blocks >= max_blocks_per_seq(length, window=self.window, step=step, block_size=block_size):
            return length
        return self.num_blocks * block_size


def first_block(position: int, *, window: int, block_size: int) -> int:
    """The first block of a sequence that ``position`` sees. No later position sees one before it."""
    return max(0, position + 1 - window) // block_size if window else 0


def max_blocks_per_seq(length: int, *, window: int, step: int, block_size: int) -> int:
    """The most blocks that a sequence holds on its way to ``length`` tokens if it computes at most ``step`` at once."""
    blocks = -(-length // block_size)
    # one more than fit into them: window and step may begin anywhere in a block
    return min(blocks, -(-(window + step - 2) // block_size) + 1) if window else blocks
