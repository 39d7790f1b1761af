"""Which sequence advances how far in the next step, and what a finished step means for each of them.

One rule: a sequence has tokens known and tokens computed; a step hands out budget until the second catches the first.
Knows token counts and blocks; no tensor, no text and no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mistralrs.engine.block_pool import BlockPool
from mistralrs.engine.config import EngineConfig
from mistralrs.engine.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start`` to ``start + count`` of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    count: int
    samples: bool
    """The chunk reaches the last known token, so the step draws the next one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: decode rows in order of arrival, then prefill chunks in order of arrival."""

    chunks: list[Chunk]


class Scheduler:
    """First come, first served; at most ``max_seqs`` run; the youngest is preempted when blocks run out.

    A preempted sequence keeps its known tokens and waits before all others. Nobody starves: the oldest sequence is
    always served, and whoever runs ends after finitely many steps.
    """

    def __init__(self, config: EngineConfig, eos_ids: frozenset[int]) -> None:
        reuse = 0 if config.no_kv_cache else config.prefix_cache_n
        self.pool = BlockPool(config.num_blocks, keep_sequences=reuse)
        self.max_len = min(config.max_model_len, config.num_blocks * config.block_size)
        """Tokens that one sequence can have, prompt and answer together."""
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.num_cached_tokens = 0
        """Prompt tokens of all admitted sequences that prefix hits saved."""
        self._config = config
        self._eos_ids = eos_ids

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. One that is as long as it may become finishes at once."""
        if len(sequence.tokens) >= sequence.max_len:
            self._finish(sequence, "length")
        else:
            self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, keep: bool) -> None:
        """Ends a sequence from outside and frees its blocks; ``keep`` leaves them for reuse. Idempotent."""
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._release(sequence, keep=keep)
        sequence.state = State.FINISHED

    def plan(self, prefill_limit: int) -> Plan:
        """The next step. May admit and preempt, but computes nothing: a plan that is dropped costs nothing.

        ``prefill_limit``: prefill tokens that the step may hold beside decode rows; alone they may fill the budget.
        """
        preempted = self._make_room()
        decodes = [s for s in self.running if s.num_remaining == 1][: self._config.max_batch_tokens]
        chunks = [self._chunk(sequence, 1) for sequence in decodes]
        budget = self._config.max_batch_tokens - len(chunks)
        if chunks:
            budget = min(budget, prefill_limit)
        for sequence in self.running:
            if budget > 0 and sequence.num_remaining > 1:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].count
        while budget > 0 and self.waiting and not preempted and self._admit(self.waiting[0]):
            chunks.append(self._chunk(self.running[-1], budget))
            budget -= chunks[-1].count
        if self.has_work and not chunks:
            raise RuntimeError("the scheduler has work and found none to do")
        return Plan(chunks)

    def commit(self, plan: Plan, sampled: Mapping[int, int]) -> None:
        """Records a step that was computed: ``sampled`` maps sequence ids to the drawn tokens.

        Sequences that were removed since the plan was made are passed over.
        """
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.state is not State.RUNNING:
                continue
            sequence.num_computed += chunk.count
            self._register(sequence)
            if chunk.samples:
                self._append(sequence, sampled[sequence.id])

    def _append(self, sequence: Sequence, token: int) -> None:
        sequence.tokens.append(token)
        if token in self._eos_ids and not sequence.sampling.ignore_eos:
            self._finish(sequence, "stop")
        elif len(sequence.tokens) >= sequence.max_len:
            self._finish(sequence, "length")
        elif self._config.no_kv_cache:
            sequence.num_computed = 0

    def _finish(self, sequence: Sequence, reason: Literal["stop", "length"]) -> None:
        sequence.finish_reason = reason
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._release(sequence, keep=True)
        sequence.state = State.FINISHED

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        count = min(sequence.num_remaining, budget)
        return Chunk(sequence, sequence.num_computed, count, samples=count == sequence.num_remaining)

    def _blocks_for(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self._config.block_size)

    def _make_room(self) -> bool:
        """Gives running sequences, oldest first, blocks for all they know. Returns whether one was preempted for it."""
        preempted = False
        index = 0
        while index < len(self.running):
            sequence = self.running[index]
            missing = self._blocks_for(sequence) - len(sequence.blocks)
            if missing > self.pool.num_free:
                self._preempt(self.running[-1])
                preempted = True
                continue
            sequence.blocks += self.pool.allocate(missing)
            index += 1
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence, keep=True)
        sequence.num_computed = 0
        sequence.state = State.WAITING
        self.waiting.appendleft(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        """Starts the first waiting sequence if there is a place, blocks for all it knows, and room to grow."""
        if len(self.running) >= self._config.max_seqs:
            return False
        hits = self._match(sequence)
        missing = self._blocks_for(sequence) - len(hits)
        if missing + len(self.running) > self.pool.num_free_beside(hits):
            return False
        self.pool.hold(hits)
        sequence.blocks = hits + self.pool.allocate(missing)
        sequence.num_registered = len(hits)
        sequence.num_computed = len(hits) * self._config.block_size
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            self.num_cached_tokens += sequence.num_cached
        sequence.state = State.RUNNING
        self.running.append(self.waiting.popleft())
        return True

    def _match(self, sequence: Sequence) -> list[int]:
        if not self.pool.reuse:
            return []
        # The last known token is always computed: its logits are what the step is for.
        count = (len(sequence.tokens) - 1) // self._config.block_size
        return self.pool.match(sequence.digests(count, self._config.block_size))

    def _register(self, sequence: Sequence) -> None:
        if not self.pool.reuse:
            return
        count = sequence.num_computed // self._config.block_size
        digests = sequence.digests(count, self._config.block_size)
        for index in range(sequence.num_registered, count):
            self.pool.register(sequence.blocks[index], digests[index])
        sequence.num_registered = count

    def _release(self, sequence: Sequence, *, keep: bool) -> None:
        if keep:
            self.pool.keep(sequence.digests(sequence.num_registered, self._config.block_size))
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_registered = 0
