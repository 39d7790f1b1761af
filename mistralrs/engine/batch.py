"""The input of a forward pass: a plan flattened into plain lists, and the flag that stops the pass early."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

from mistralrs.engine.active_adapters import ActiveAdapter
from mistralrs.engine.scheduler import Plan
from mistralrs.engine.sequence import ExecutorState
from mistralrs.ops.kv_groups import KvGroup
from mistralrs.ops.linear import AdapterUse


@dataclass(frozen=True, slots=True)
class Batch:
    """One flat step over sequences of different lengths."""

    tokens: list[int]
    """(num_tokens,) token ids."""
    positions: list[int]
    """(num_tokens,) absolute positions."""
    slot_mapping: list[list[int]]
    """(kv_groups, num_tokens) ``block * block_size + offset``: where a token's KV goes."""
    query_start_loc: list[int]
    """(num_seqs + 1,) ranges of the flat arrays."""
    seq_lens: list[int]
    """(num_seqs,) tokens of the sequence once this step is done, draft tokens included."""
    block_tables: list[list[list[int]]]
    """(kv_groups, num_seqs) the blocks that hold those tokens, perhaps more: the sequences' own lists, which the step
    does not change. Entries before the window are undefined."""
    logits_indices: list[int]
    """Flat indices of the tokens whose logits the step returns, ascending."""
    adapters: list[list[AdapterUse]] = field(default_factory=list)
    """(num_seqs,) the adapters that act on tokens of the sequence in this step, in the order in which their additions
    are summed. Empty: none acts on any sequence."""
    states: list[ExecutorState] = field(default_factory=list)
    """(num_seqs,) the executor's state of each sequence, the same object in all its steps."""

    @classmethod
    def from_plan(cls, plan: Plan, *, block_size: int) -> Batch:
        """The batch of a plan, which must have at least one chunk. Sequences keep their order."""
        groups = range(len(plan.chunks[0].sequence.block_tables))
        tokens: list[int] = []
        positions: list[int] = []
        logits_indices: list[int] = []
        query_start_loc = [0]
        slot_mapping: list[list[int]] = [[] for _ in groups]
        block_tables: list[list[list[int]]] = [[] for _ in groups]
        for chunk in plan.chunks:
            sequence, end = chunk.sequence, chunk.start + chunk.count
            places = range(chunk.start, end)
            tokens += sequence.tokens[chunk.start : end]
            tokens += chunk.draft_tokens
            positions += places
            query_start_loc.append(len(tokens))
            for slots, tables, table in zip(slot_mapping, block_tables, sequence.block_tables, strict=True):
                slots += [table[place // block_size] * block_size + place % block_size for place in places]
                tables.append(table)
            if chunk.scored:
                logits_indices += [len(tokens) - end + place for place in chunk.scored]
            if chunk.samples:
                logits_indices += range(len(tokens) - 1 - len(chunk.draft_tokens), len(tokens))
        sequences = [chunk.sequence for chunk in plan.chunks]
        seq_lens = [chunk.start + chunk.count for chunk in plan.chunks]
        adapters = [_adapter_uses(each.adapters, end) for each, end in zip(sequences, seq_lens, strict=True)]
        states = [each.executor_state for each in sequences]
        return cls(
            tokens, positions, slot_mapping, query_start_loc, seq_lens, block_tables, logits_indices, adapters, states
        )

    @classmethod
    def of_one_sequence(
        cls, tokens: list[int], start: int, *, groups: Sequence[KvGroup], block_size: int, logits_indices: list[int]
    ) -> Batch:
        """The batch of one sequence's tokens from position ``start`` on, for tools that drive a model without an
        engine."""
        end = start + len(tokens)
        positions = list(range(start, end))
        # Blocks of a window are reused in a ring: a block comes again once the window has left its tokens behind.
        tables = [[index % group.num_blocks for index in range(-(-end // block_size))] for group in groups]
        slots = [[table[p // block_size] * block_size + p % block_size for p in positions] for table in tables]
        batch = cls(tokens, positions, slots, [0, len(tokens)], [end], [[table] for table in tables], logits_indices)
        batch.states.append(ExecutorState(end))
        return batch


def _adapter_uses(adapters: Sequence[ActiveAdapter], end: int) -> list[AdapterUse]:
    """Those that act before position ``end``: others leave the step on the plain path."""
    return [
        AdapterUse(active.slot, active.weight, active.first_position)
        for active in adapters
        if active.first_position < end
    ]


class CancelFlag:
    """Tells a forward pass to stop because its result is no longer needed. Any thread may set it; kernels poll
    ``flag``."""

    __slots__ = ("flag",)

    def __init__(self) -> None:
        self.flag = ctypes.c_int32(0)
        """Nonzero means stop. Its address is valid as long as this object lives."""

    def set(self) -> None:
        """Asks the forward pass to stop."""
        self.flag.value = 1

    def clear(self) -> None:
        """Takes the request back, before the next step."""
        self.flag.value = 0

    def is_set(self) -> bool:
        """Returns whether the forward pass is asked to stop."""
        return self.flag.value != 0
