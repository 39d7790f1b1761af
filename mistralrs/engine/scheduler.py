"""Plans which tokens of which sequences the next step computes, and records the result of a step.

A sequence has known tokens and computed tokens. Each step spends its token budget on the difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from mistralrs.engine.config import EngineConfig
from mistralrs.engine.draft_gain import PART
from mistralrs.engine.drafter import Drafter
from mistralrs.engine.kv.kv_cache_manager import KvCacheManager, KvConnector
from mistralrs.engine.sequence import Sequence, State

MAX_DRAFT_BATCH = 16
"""Tokens up to which a step is filled with draft tokens: two tiles of the kernels, which share one pass over the
weights."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start`` to ``start + count`` of a sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    count: int
    samples: bool
    """Whether the chunk reaches the last known token, so that the step samples the next one."""
    scored: range = range(0)
    """Prompt positions whose logits the step returns, for the log-probabilities of the tokens after them."""
    draft_tokens: tuple[int, ...] = ()
    """Draft tokens at the end of the chunk, after the known ones. The step also samples a token after each of them."""
    computed_tokens: tuple[int, ...] = ()
    """Instead of these: tokens that steps in a row sampled after the known one and computed, all but the last."""

    @property
    def later_tokens(self) -> tuple[int, ...]:
        """Tokens that are computed and not known yet."""
        return self.draft_tokens or self.computed_tokens

    @property
    def num_committed(self) -> int:
        """Tokens of the chunk that are known."""
        return self.count - len(self.later_tokens)

    def decoded(self, tokens: tuple[int, ...]) -> Chunk:
        """The chunk of steps in a row: that of the first of them, and the tokens that the others computed."""
        return Chunk(self.sequence, self.start, self.count + len(tokens), True, computed_tokens=tokens)

    def first_part(self, count: int) -> Chunk:
        """The chunk with its first ``count`` tokens alone, all but one of which are draft tokens."""
        return Chunk(self.sequence, self.start, count, True, draft_tokens=self.draft_tokens[: count - 1])

    def num_accepted(self, tokens: Row[int]) -> int:
        """Later tokens that become known, if these are the tokens of the step, at least one. The last of them is yet to
        be computed, even where it equals a draft token."""
        if not self.later_tokens:
            return 0
        pairs = zip(self.later_tokens, tokens[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: chunks that decode in order of arrival, then chunks of prefill in order of arrival."""

    chunks: list[Chunk]
    num_steps: int = 1
    """Steps that may follow each other: if more than one, each computes one token of each sequence, the token that the
    step before sampled."""
    num_parts: int = 1
    """If more than one, the only chunk is computed in so many equal parts, each if all draft tokens before it were
    right."""

    @property
    def has_drafts(self) -> bool:
        """Whether there are draft tokens."""
        return any(chunk.draft_tokens for chunk in self.chunks)


class Scheduler:
    """First come, first served; at most ``max_seqs`` run; the youngest is preempted when blocks run out.

    A preempted sequence keeps its known tokens and waits before all others. No sequence starves: the oldest one is
    in every step, and every running sequence ends after finitely many steps.
    """

    def __init__(
        self, config: EngineConfig, kv_connector: KvConnector | None = None, *, drafter: Drafter | None = None
    ) -> None:
        """``kv_connector``: stores blocks beyond the life of the engine. ``drafter``: proposes draft tokens; None:
        prompt lookup does."""
        self.blocks = KvCacheManager(config, kv_connector)
        self.max_len = min(
            group.max_context(config.max_model_len, step=config.max_batch_tokens, block_size=config.block_size)
            for group in config.kv_groups
        )
        """Tokens that one sequence can have, prompt and answer together."""
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.num_cached_tokens = 0
        """Prompt tokens of all admitted sequences that were found in the prefix cache."""
        self.num_preemptions = 0
        self.num_drafted = 0
        """Draft tokens that were computed."""
        self.num_accepted = 0
        """Draft tokens that were accepted."""
        self._config = config
        self._drafter = drafter or Drafter()
        self._proposes_drafts = config.max_draft > 0 and not config.no_kv_cache
        self._sequences_with_later: list[Sequence] = []  # those with blocks for the last plan's later tokens
        self._spare_logits = 0  # logits left in the step that is being planned, beside one of each sequence

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. One that has its full length already finishes at once, unless it computes its
        prompt."""
        if len(sequence.tokens) >= sequence.max_len and sequence.prompt_end is None:
            self._finish(sequence, "length")
        else:
            if self._proposes_drafts:
                self._drafter.add(sequence)
            sequence.state = State.WAITING
            self.waiting.append(sequence)

    def remove(self, sequence: Sequence, *, retain: bool) -> None:
        """Ends a sequence from outside and frees its blocks; ``retain`` keeps them for reuse. Idempotent."""
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        elif sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self.blocks.release(sequence, retain=retain)
        self._drafter.ended(sequence)
        sequence.state = State.FINISHED

    def plan(self, prefill_limit: int, max_steps: int = 1, *, in_parts: bool = False) -> Plan:
        """The next step. Admits and preempts sequences, but computes nothing: a plan may be dropped at no cost.

        ``prefill_limit``: prefill tokens that the step may have beside decoding sequences; without any, prefill may
        fill the whole budget. ``max_steps``: decode steps that may follow each other. ``in_parts``: whether draft
        tokens may be computed in parts.
        """
        self._free_later_blocks()
        preempted = self._allocate_for_running()
        self._spare_logits = self._config.max_prompt_logits
        decodes = [s for s in self.running if s.num_remaining == 1][: self._config.max_batch_tokens]
        chunks = [self._chunk(sequence, 1) for sequence in decodes]
        if self.waiting or len(decodes) < len(self.running):
            self._add_prefill(chunks, prefill_limit, admits=not preempted)
        if self.has_work and not chunks:
            raise RuntimeError("the scheduler has work and found none to do")
        if len(chunks) > len(decodes) or self.waiting:
            return Plan(chunks)
        in_parts = in_parts and len(chunks) == 1 and _is_unaided(chunks[0].sequence)
        if self._proposes_drafts:
            in_parts = self._add_drafts(chunks, in_parts=in_parts)
        if self._sequences_with_later:
            is_divided = in_parts and chunks[0].count % PART == 0
            return Plan(chunks, num_parts=chunks[0].count // PART if is_divided else 1)
        return Plan(chunks, self._num_steps(chunks, max_steps))

    def commit(self, plan: Plan, sampled_tokens: Mapping[int, Row[int]]) -> None:
        """Records a step that was computed, or steps in a row, and how many draft tokens were accepted.

        ``sampled_tokens`` maps ids of sequences to the tokens of the step, in their order: one after the known tokens,
        one after each later token that was right, and forced ones, which are computed later unless they were draft
        tokens. Those behind a token that ends the sequence are dropped. Sequences that were removed since the plan was
        made are left out.
        """
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if sequence.state is not State.RUNNING:
                continue
            self._commit_computed(sequence, chunk.num_committed)
            if chunk.samples:
                self._commit_sampled(chunk, sampled_tokens[sequence.id])
            elif sequence.prompt_end is not None and sequence.num_remaining == 0:
                self._finish(sequence, sequence.prompt_end)

    def check_integrity(self) -> None:
        """Raises AssertionError unless the blocks' states agree with the block tables of the running sequences."""
        self.blocks.check_integrity(self.running)

    def _commit_computed(self, sequence: Sequence, count: int) -> None:
        sequence.num_computed += count
        sequence.num_scored = max(sequence.num_scored, sequence.num_computed)
        self.blocks.commit(sequence)

    def _commit_sampled(self, chunk: Chunk, tokens: Row[int]) -> None:
        sequence, num_accepted = chunk.sequence, chunk.num_accepted(tokens)
        accepted = 0
        self._append(sequence, tokens[0])
        for token in tokens[1:]:
            if sequence.state is not State.RUNNING:
                break
            if accepted < num_accepted:
                self._commit_computed(sequence, 1)  # the last known token is the later token that was right
                accepted += 1
            self._append(sequence, token)
        if chunk.draft_tokens:
            drafted = len(chunk.draft_tokens)
            self._drafter.record_acceptance(sequence, drafted, accepted)
            self.num_drafted += drafted
            self.num_accepted += accepted

    def _append(self, sequence: Sequence, token: int) -> None:
        sequence.tokens.append(token)
        reason = sequence.reason_after(token, len(sequence.tokens))
        if reason is not None:
            self._finish(sequence, reason)
        elif self._config.no_kv_cache:
            self.blocks.rewind(sequence)

    def _finish(self, sequence: Sequence, reason: Literal["stop", "length"]) -> None:
        sequence.finish_reason = reason
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self.blocks.release(sequence, retain=True)
        self._drafter.ended(sequence)
        sequence.state = State.FINISHED

    def _add_prefill(self, chunks: list[Chunk], limit: int, *, admits: bool) -> None:
        """Adds to the chunks that decode those of sequences with more tokens to compute, and of waiting ones if it
        ``admits`` them. ``limit``: as in ``plan``."""
        budget = self._config.max_batch_tokens - len(chunks)
        if chunks:
            budget = min(budget, limit)
        behind = [s for s in self.running if s.num_remaining > 1]
        answers = [s for s in behind if s.num_computed >= s.num_prompt]  # their clients wait for tokens
        prompts = [s for s in behind if s.num_computed < s.num_prompt]
        reserved = int(prompts[:1] == self.running[:1] and budget > 0)  # the oldest sequence is in every step
        budget = self._add_chunks(chunks, answers, budget - reserved) + reserved
        if answers:
            budget = min(budget, limit)
        budget = self._add_chunks(chunks, prompts, budget)
        while budget > 0 and self.waiting and admits and self._admit(self.waiting[0]):
            chunks.append(self._chunk(self.running[-1], budget))
            budget -= chunks[-1].count

    def _add_chunks(self, chunks: list[Chunk], sequences: Row[Sequence], budget: int) -> int:
        """Adds chunks of these sequences within a budget of tokens. Returns the rest of it."""
        for sequence in sequences:
            if budget > 0:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].count
        return budget

    def _chunk(self, sequence: Sequence, budget: int) -> Chunk:
        start = sequence.num_computed
        remaining = sequence.num_remaining
        count = min(remaining, budget)
        scored = range(0)
        if sequence.num_unscored:
            count = min(count, max(sequence.num_scored - start, 0) + 1 + self._spare_logits)
            scored = range(max(sequence.num_scored, start), min(start + count, sequence.num_prompt - 1))
        samples = count == remaining and sequence.prompt_end is None
        self._spare_logits -= max(len(scored) + samples - 1, 0)
        return Chunk(sequence, start, count, samples, scored)

    def _add_drafts(self, chunks: list[Chunk], *, in_parts: bool) -> bool:
        """Adds draft tokens to a step that only decodes, evenly, as far as blocks and budget are left. ``in_parts`` and
        the result are as of ``Drafter.propose``."""
        rows = min(MAX_DRAFT_BATCH - len(chunks), self._config.max_batch_tokens - len(chunks), self._spare_logits)
        if rows < 1:
            return False
        limits = [self._max_draft(chunk, rows) for chunk in chunks]
        drafts, in_parts = self._drafter.propose([chunk.sequence for chunk in chunks], limits, rows, in_parts=in_parts)
        shortest_first = sorted(range(len(chunks)), key=lambda index: len(drafts[index]))
        for place, index in enumerate(shortest_first):
            chunk, share = chunks[index], rows // (len(chunks) - place)
            draft = drafts[index][:share]
            while draft and not self.blocks.extend(chunk.sequence, ahead=len(draft)):
                draft = draft[:-1]
            if draft:
                chunks[index] = Chunk(chunk.sequence, chunk.start, chunk.count + len(draft), True, chunk.scored, draft)
                self._sequences_with_later.append(chunk.sequence)
                rows -= len(draft)
        return in_parts

    def _max_draft(self, chunk: Chunk, rows: int) -> int:
        """Draft tokens that a chunk may have."""
        sequence = chunk.sequence
        # One token is sampled after the draft tokens.
        count = min(rows, self._config.max_draft, sequence.max_len - len(sequence.tokens) - 1)
        return count if chunk.samples and sequence.takes_drafts else 0

    def _num_steps(self, chunks: Row[Chunk], max_steps: int) -> int:
        """Steps that may follow each other, ``max_steps`` at most. Gives the sequences the blocks for them."""
        # A window has blocks for the tokens of one step.
        count = 1 if self._config.no_kv_cache else min(max_steps, self._config.max_batch_tokens)
        for chunk in chunks:
            count = min(count, _max_steps(chunk))
        if count == 1:
            return 1
        for chunk in chunks:
            self._sequences_with_later.append(chunk.sequence)
            if not self.blocks.extend(chunk.sequence, ahead=count - 1):
                return 1
        return count

    def _free_later_blocks(self) -> None:
        """Frees the blocks of tokens that did not become known, so that other sequences can use them."""
        for sequence in self._sequences_with_later:
            if sequence.state is State.RUNNING:
                self.blocks.trim(sequence)
        self._sequences_with_later.clear()

    def _allocate_for_running(self) -> bool:
        """Gives running sequences, oldest first, the blocks they need. Returns whether a sequence was preempted for
        it."""
        preempted = False
        index = 0
        while index < len(self.running):
            if self.blocks.extend(self.running[index]):
                index += 1
            else:
                self._preempt(self.running[-1])
                preempted = True
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self.blocks.release(sequence, retain=True)
        sequence.num_computed = 0
        sequence.state = State.WAITING
        self.waiting.appendleft(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        """Starts the first waiting sequence if ``max_seqs`` and the blocks allow it. Returns whether it did."""
        if len(self.running) >= self._config.max_seqs:
            return False
        if not self.blocks.admit(sequence, beside=self.running):
            return False
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
            self.num_cached_tokens += sequence.num_cached
        sequence.state = State.RUNNING
        self.running.append(self.waiting.popleft())
        return True


def _is_unaided(sequence: Sequence) -> bool:
    """Whether the library can go on with a sequence without the engine."""
    return sequence.takes_steps and sequence.constraint is None


def _max_steps(chunk: Chunk) -> int:
    """Steps that may follow each other as far as the chunk's sequence is concerned, at least one."""
    sequence = chunk.sequence
    if not (chunk.samples and _is_unaided(sequence)):
        return 1
    if len(sequence.tokens) - sequence.num_prompt < sequence.sampling.min_tokens:
        return 1
    return sequence.max_len - len(sequence.tokens)
