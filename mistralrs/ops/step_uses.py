"""Which adapters act on the tokens of a step, spread from sequences to tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from mistralrs.ops.linear import AdapterUse


class StepUses:
    """The uses of a step's tokens as flat arrays: token t has those in [starts[t], starts[t + 1])."""

    def __init__(self) -> None:
        self.starts = array("i", [0])
        """(num_tokens + 1,) int32"""
        self.slots = array("i")
        """(uses,) int32"""
        self.weights = array("f")
        """(uses,) float32"""

    @property
    def only_slot(self) -> int:
        """The slot that is every token's only use; -1: there is none."""
        slots = self.slots
        return slots[0] if slots.count(slots[0]) == len(slots) and self._is_one_each else -1

    @property
    def _is_one_each(self) -> bool:
        return self.starts == array("i", range(len(self.starts)))

    @classmethod
    def of(
        cls,
        adapters: Sequence[Sequence[AdapterUse]],
        *,
        positions: Sequence[int],
        query_start_loc: Sequence[int],
        slots: int,
    ) -> StepUses | None:
        """The uses of a step whose sequences have ``adapters``; None if no adapter acts on any token.

        ``positions`` (num_tokens,) and ``query_start_loc`` (num_seqs + 1,) are those of the step, ``slots`` the model's
        number of adapter slots. Raises ``ValueError`` for a slot that the model does not have, or one that a sequence
        uses twice.
        """
        if not any(adapters):
            return None
        step = cls()
        for uses, begin, end in zip(adapters, query_start_loc[:-1], query_start_loc[1:], strict=True):
            used = [use.slot for use in uses]
            if len(set(used)) < len(used) or not all(0 <= slot < slots for slot in used):
                raise ValueError(f"slots {used} are not different ones of the model's {slots}")
            step._add(uses, positions[begin:end])
        return step if step.slots else None

    def _add(self, uses: Sequence[AdapterUse], positions: Sequence[int]) -> None:
        """Appends the uses of one sequence's tokens. Positions ascend, so the uses change at few of them."""
        borders = sorted({use.first_position for use in uses})
        at = 0
        while at < len(positions):
            acting = [use for use in uses if use.first_position <= positions[at]]
            border = next((border for border in borders if border > positions[at]), None)
            left = len(positions) - at
            count = left if border is None else min(left, border - positions[at])
            start, each = len(self.slots), len(acting)
            self.starts.extend(range(start + each, start + each * count + 1, each) if each else [start] * count)
            self.slots.extend(array("i", [use.slot for use in acting]) * count)
            self.weights.extend(array("f", [use.weight for use in acting]) * count)
            at += count
