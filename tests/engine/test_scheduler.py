"""The scheduler's promises, one by one and under a random drill, with tokens that depend on the whole history."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Row
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.batch import Batch
from mistralrs.engine.config import EngineConfig, SamplingParams
from mistralrs.engine.scheduler import MAX_DRAFT_BATCH, Chunk, Plan, Scheduler
from mistralrs.engine.sequence import Sequence, State
from mistralrs.ops.kv_groups import KvGroup, max_blocks_per_seq

EOS = 0
UNLIMITED = 10**6


def config(num_blocks: int = 64, *, windows: Row[int] = (0,), spare: int | None = None, **changes: Any) -> EngineConfig:
    """``spare``: groups with a window have so many blocks more than one sequence needs; None: ``num_blocks``."""
    values = {"max_model_len": 200, "max_seqs": 4, "max_batch_tokens": 32, "block_size": 4, **changes}

    def blocks(window: int) -> int:
        if not window or spare is None:
            return num_blocks
        length, step = values["max_model_len"], values["max_batch_tokens"]
        return spare + max_blocks_per_seq(length, window=window, step=step, block_size=values["block_size"])

    groups = tuple(KvGroup(blocks(window), window) for window in windows)
    return EngineConfig(kv_groups=groups, **values)


def next_token(history: Row[int], *, habit: bool = False) -> int:
    """1 to 50, or the end token once in 40 times. ``habit``: three times in four the last token decides alone."""
    value = hashlib.blake2b(str(list(history)).encode()).digest()[0]
    if habit and value % 4:
        return history[-1] * 3 % 11 + 1
    return EOS if value % 40 == 0 else value % 50 + 1


def continuation(prompt: Row[int], max_len: int, *, endless: bool = False, habit: bool = False) -> list[int]:
    """The tokens and reason with which a sequence must end under any schedule; ``endless`` ones ignore the end
    token."""
    tokens = list(prompt)
    while len(tokens) < max_len:
        tokens.append(next_token(tokens, habit=habit))
        if tokens[-1] == EOS and not endless:
            break
    return tokens


class FakeKvConnector:
    """Stores blocks of a drill's memory, some of which turn out to be lost on loading."""

    def __init__(self, memory: list[dict[int, tuple[int, int]]], *, block_size: int, lose_every: int = 0) -> None:
        self.memory, self.block_size, self.lose_every = memory, block_size, lose_every
        self.blocks: dict[tuple[bytes, int], list[tuple[int, int]]] = {}
        self.loads = 0

    def has(self, block_hash: bytes, group: int) -> bool:
        return (block_hash, group) in self.blocks

    def load(self, block_hash: bytes, group: int, block: int) -> bool:
        self.loads += 1
        if self.lose_every and self.loads % self.lose_every == 0:
            del self.blocks[block_hash, group]
        if (block_hash, group) not in self.blocks:
            return False
        self.memory[group].update(zip(self.slots(block), self.blocks[block_hash, group], strict=True))
        return True

    def save(self, block_hash: bytes, group: int, block: int) -> None:
        self.blocks.setdefault((block_hash, group), [self.memory[group][slot] for slot in self.slots(block)])

    def slots(self, block: int) -> range:
        return range(block * self.block_size, (block + 1) * self.block_size)


class Drill:
    """Runs a scheduler against a memory of tokens, checking every step."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        connector: FakeKvConnector | None = None,
        habit: bool = False,
        forces: bool = False,
        max_steps: int = 1,
    ) -> None:
        """``forces``: some tokens are followed by others that no step samples, as a grammar may force. ``max_steps``:
        steps in a row, of which now and then fewer are made."""
        self.config = config
        self.forces = forces
        self.max_steps = max_steps
        self.habit = habit
        self.scheduler = Scheduler(config, connector)
        self.memory: list[dict[int, tuple[int, int]]] = (
            connector.memory if connector else [{} for _ in config.kv_groups]
        )
        self.count = self.count_of_calls = 0

    @property
    def num_blocks(self) -> int:
        return sum(group.num_blocks for group in self.config.kv_groups)

    def add(self, prompt: Row[int], max_tokens: int = 8, cache_salt: str = "", *, endless: bool = False) -> Sequence:
        max_len = min(len(prompt) + max_tokens, self.scheduler.max_len)
        ends = frozenset() if endless else frozenset({EOS})
        sequence = Sequence(self.count, list(prompt), SamplingParams(), max_len, cache_salt, end_ids=ends)
        self.count += 1
        self.scheduler.add(sequence)
        return sequence

    def plan(self, prefill_limit: int = UNLIMITED) -> Plan:
        plan = self.scheduler.plan(prefill_limit, self.max_steps)
        self.scheduler.check_integrity()
        assert 1 <= plan.num_steps <= self.max_steps
        assert sum(chunk.count for chunk in plan.chunks) <= self.config.max_batch_tokens
        assert len(self.scheduler.running) <= self.config.max_seqs
        order = [s.id for s in (*self.scheduler.running, *self.scheduler.waiting)]
        assert order == sorted(order), "first come, first served"
        self.check_drafts(plan)
        return plan

    def check_drafts(self, plan: Plan) -> None:
        """Draft tokens take nothing that another sequence needs, and leave room for at least one token after them."""
        drafted = [chunk for chunk in plan.chunks if chunk.draft_tokens]
        rows = sum(1 + len(chunk.draft_tokens) for chunk in plan.chunks)
        assert not drafted or rows <= MAX_DRAFT_BATCH
        assert not drafted or (all(chunk.num_committed == 1 for chunk in plan.chunks) and not self.scheduler.waiting)
        assert rows <= len(plan.chunks) + self.config.max_prompt_logits
        for chunk in drafted:
            assert len(chunk.draft_tokens) <= self.config.max_draft
            assert len(chunk.sequence.tokens) + len(chunk.draft_tokens) < chunk.sequence.max_len

    def compute(self, plan: Plan) -> dict[int, list[int]]:
        batch = Batch.from_plan(plan, block_size=self.config.block_size)
        marks = [
            self.mark(chunk.sequence, chunk.start + index) for chunk in plan.chunks for index in range(chunk.count)
        ]
        groups = zip(self.config.kv_groups, self.memory, batch.slot_mapping, batch.block_tables, strict=True)
        for group, memory, slots, tables in groups:
            assert len(set(slots)) == len(slots)
            memory.update(zip(slots, zip(batch.tokens, marks, strict=True), strict=True))
            for chunk, table in zip(plan.chunks, tables, strict=True):
                self.look_back(chunk, table, group.window, memory)
        return {chunk.sequence.id: self.draw(chunk) for chunk in plan.chunks if chunk.samples}

    def go_on(self, plan: Plan, drawn: dict[int, list[int]]) -> Plan:
        """Makes the steps of a plan behind the first, and adds their tokens. Returns what was carried out."""
        self.count_of_calls += 1
        for _ in range(self.count_of_calls % plan.num_steps):
            if any(drawn[chunk.sequence.id][-1] in chunk.sequence.end_ids for chunk in plan.chunks):
                break
            for chunk in plan.chunks:
                self.write_next(chunk.sequence, drawn[chunk.sequence.id])
        chunks = [chunk.decoded(tuple(drawn[chunk.sequence.id][:-1])) for chunk in plan.chunks]
        for group, (limits, memory) in enumerate(zip(self.config.kv_groups, self.memory, strict=True)):
            for chunk in chunks:
                self.look_back(chunk, chunk.sequence.block_tables[group], limits.window, memory)
        return Plan(chunks, plan.num_steps)

    def write_next(self, sequence: Sequence, drawn: list[int]) -> None:
        """Computes the last token that was drawn for a sequence, and draws one more."""
        position, size = len(sequence.tokens) + len(drawn) - 1, self.config.block_size
        assert position < sequence.max_len
        for memory, table in zip(self.memory, sequence.block_tables, strict=True):
            memory[table[position // size] * size + position % size] = drawn[-1], self.mark(sequence, position)
        drawn.append(next_token([*sequence.tokens, *drawn], habit=self.habit))

    def draw(self, chunk: Chunk) -> list[int]:
        """The tokens of a step: one after the known tokens, one after each draft token that is right, and forced
        ones."""
        known = list(chunk.sequence.tokens)
        drawn = [next_token(known, habit=self.habit)]
        for guess in chunk.draft_tokens:
            if drawn[-1] != guess:
                break
            drawn.append(next_token([*known, *drawn], habit=self.habit))
        if self.forces:
            for _ in range(drawn[-1] % 7):
                drawn.append(next_token([*known, *drawn], habit=self.habit))
        return drawn

    def look_back(self, chunk: Chunk, table: list[int], window: int, memory: dict[int, tuple[int, int]]) -> None:
        """All that the tokens of a chunk see must lie where the table says."""
        size, tokens = self.config.block_size, [*chunk.sequence.tokens, *chunk.later_tokens]
        seen = range(max(0, chunk.start - window + 1) if window else 0, chunk.start + chunk.count)
        expected = [(tokens[p], self.mark(chunk.sequence, p)) for p in seen]
        assert [memory[table[p // size] * size + p % size] for p in seen] == expected

    def mark(self, sequence: Sequence, position: int) -> int:
        """The position; behind the shared part of an answer it is another for each sequence."""
        shared = self.config.shared_answer_tokens
        own = shared is not None and position >= sequence.num_prompt + shared
        return position + own * 1000 * (sequence.id + 1)

    def step(self, prefill_limit: int = UNLIMITED) -> Plan:
        plan = self.plan(prefill_limit)
        drawn = self.compute(plan)
        if plan.num_steps > 1:
            plan = self.go_on(plan, drawn)
        self.scheduler.commit(plan, drawn)
        self.scheduler.check_integrity()
        return plan

    def run(self) -> int:
        steps = 0
        while self.scheduler.has_work:
            self.step()
            steps += 1
            assert steps < 5000
        assert self.scheduler.blocks.num_free == self.num_blocks
        return steps


def counts(plan: Plan) -> list[tuple[int, int]]:
    return [(chunk.sequence.id, chunk.count) for chunk in plan.chunks]


def test_a_long_prompt_is_cut_in_chunks() -> None:
    drill = Drill(config())
    sequence = drill.add(range(1, 71), max_tokens=2)
    assert [counts(drill.step()) for _ in range(4)] == [[(0, 32)], [(0, 32)], [(0, 6)], [(0, 1)]]
    assert sequence.tokens == continuation(range(1, 71), 72)
    assert sequence.finish_reason == "length"


def test_decodes_come_first_and_limit_the_prefill_beside_them() -> None:
    drill = Drill(config())
    drill.add(range(1, 5), max_tokens=20)
    drill.step()
    drill.add(range(1, 100), max_tokens=20)
    assert counts(drill.step(prefill_limit=10)) == [(0, 1), (1, 10)]
    assert counts(drill.step(prefill_limit=UNLIMITED)) == [(0, 1), (1, 31)]


def test_prefill_alone_is_not_limited() -> None:
    drill = Drill(config())
    drill.add(range(1, 30))
    assert counts(drill.step(prefill_limit=4)) == [(0, 29)]


def test_no_more_than_max_seqs_run() -> None:
    drill = Drill(config(max_seqs=2))
    sequences = [drill.add([i + 1], max_tokens=5) for i in range(5)]
    assert [s.id for s in (chunk.sequence for chunk in drill.step().chunks)] == [0, 1]
    drill.run()
    assert all(s.state is State.FINISHED for s in sequences)


def test_a_dropped_plan_changes_nothing() -> None:
    drill = Drill(config())
    sequence = drill.add(range(1, 40))
    first = drill.plan()
    assert counts(drill.plan()) == counts(first) == [(0, 32)]
    assert sequence.num_computed == 0
    assert drill.scheduler.blocks.num_cached == 0
    drill.run()
    assert sequence.tokens == continuation(range(1, 40), 47)


def test_a_prefix_hit_skips_full_blocks_but_never_the_last_token() -> None:
    drill = Drill(config())
    drill.add(range(1, 14), max_tokens=1)
    drill.run()
    longer = drill.add([*range(1, 12), 40, 41], max_tokens=1)
    assert counts(drill.step()) == [(1, 13 - 8)]
    assert longer.num_cached == 8
    same = drill.add(range(1, 13), max_tokens=1)  # three full blocks are cached, the third holds the last token
    assert counts(drill.step()) == [(2, 4)]
    assert same.num_cached == 8
    assert drill.scheduler.num_cached_tokens == 16


def test_only_computed_blocks_are_retained() -> None:
    drill = Drill(config(max_batch_tokens=10))
    gone = drill.add(range(1, 30))
    drill.step()
    drill.scheduler.remove(gone, retain=True)
    again = drill.add(range(1, 30))
    drill.run()
    assert again.num_cached == 8
    assert again.tokens == continuation(range(1, 30), 37)


def test_cache_salts_do_not_share() -> None:
    drill = Drill(config())
    drill.add(range(1, 14), max_tokens=1, cache_salt="a")
    drill.run()
    other = drill.add(range(1, 14), max_tokens=1, cache_salt="b")
    same = drill.add(range(1, 14), max_tokens=1, cache_salt="a")
    drill.run()
    assert (other.num_cached, same.num_cached) == (0, 12)


def test_running_sequences_share_blocks_too() -> None:
    drill = Drill(config())
    drill.add(range(1, 14), max_tokens=8)
    drill.step()
    sharer = drill.add(range(1, 14), max_tokens=8)
    drill.step()
    assert sharer.num_cached == 12
    assert drill.scheduler.running[0].block_tables[0][:3] == sharer.block_tables[0][:3]
    drill.run()
    assert sharer.tokens == continuation(range(1, 14), 21)


def test_blocks_that_another_sequence_computes_are_waited_for() -> None:
    """Eight arrive at once with the same beginning, which is computed once."""
    drill = Drill(config(num_blocks=200, max_seqs=8))
    prompts = [[*range(1, 71), 60 + i, 1, 2] for i in range(8)]
    sequences = [drill.add(prompt, max_tokens=3) for prompt in prompts]
    chunks: list[Chunk] = []
    while drill.scheduler.has_work:
        chunks += drill.step().chunks
    assert sum(chunk.count for chunk in chunks if chunk.start < 73) == 73 + 7 * (73 - 68)
    assert [sequence.num_cached for sequence in sequences] == [0] + [68] * 7
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.tokens == continuation(prompt, 76)


def test_a_cancelled_sequence_is_not_waited_for() -> None:
    drill = Drill(config())
    first, second = (drill.add(range(1, 71), max_tokens=2) for _ in range(2))
    drill.step()
    assert second.state is State.WAITING
    drill.scheduler.remove(first, retain=True)
    assert counts(drill.step()) == [(1, 32)]
    assert second.num_cached == 32


def test_a_sequence_that_may_not_share_does_not_wait() -> None:
    drill = Drill(config())
    drill.add(range(1, 20), cache_salt="a")
    drill.add(range(1, 20), cache_salt="b")
    assert counts(drill.step()) == [(0, 19), (1, 13)]


def test_kv_behind_the_shared_part_of_an_answer_stays_with_its_sequence() -> None:
    """With 2 shared tokens after a prompt of 5 the first block alone is given and taken; nobody waits for others."""
    drill = Drill(config(shared_answer_tokens=2))
    answered = drill.add(range(1, 6), max_tokens=16, endless=True)
    for _ in range(9):
        drill.step()
    longer = drill.add([*answered.tokens, 40, 41], max_tokens=1)
    drill.step()
    assert longer.num_cached == 4
    drill.run()
    again = drill.add(answered.tokens, max_tokens=1)
    drill.run()
    assert again.num_cached == 12  # from the prompt of the second one
    restarted = Sequence(9, [1, 2, 3, 4, 5], SamplingParams(), 200)
    restarted.tokens += answered.tokens[5:]  # as after a preemption
    drill.scheduler.add(restarted)
    [chunk] = drill.plan().chunks
    assert chunk.start == 4


@pytest.mark.parametrize("windows", [(0,), (8,), (0, 8)])
def test_blocks_in_the_connector_need_not_be_computed(windows: tuple[int, ...]) -> None:
    """By a second scheduler, as after a restart; where a block is lost, what follows it is computed."""
    limits = config(windows=windows)
    connector = FakeKvConnector([{} for _ in windows], block_size=4)
    first = Drill(limits, connector=connector)
    before = first.add(range(1, 42), max_tokens=5)
    first.run()
    for lose_every, cached in ((0, 44), (1, 0)):
        connector.memory = [{} for _ in windows]
        connector.lose_every = lose_every
        again = Drill(limits, connector=connector)
        sequence = again.add(before.tokens, max_tokens=5)
        again.run()
        assert sequence.num_cached == cached
        assert sequence.tokens == continuation(before.tokens, 51)


@pytest.mark.parametrize("changes", [{"prefix_cache_n": 0}, {"no_kv_cache": True}])
def test_without_reuse_nothing_is_shared(changes: dict[str, Any]) -> None:
    drill = Drill(config(**changes))
    for _ in range(2):
        sequence = drill.add(range(1, 14), max_tokens=3)
        drill.run()
        assert sequence.num_cached == 0
        assert sequence.tokens == continuation(range(1, 14), 16)
    assert drill.scheduler.blocks.num_cached == 0


def test_without_kv_cache_every_token_costs_the_whole_sequence() -> None:
    drill = Drill(config(no_kv_cache=True))
    sequence = drill.add(range(2, 35), max_tokens=3)
    assert len(continuation(range(2, 35), 36)) == 36
    assert [counts(drill.step()) for _ in range(6)] == [[(0, 32)], [(0, 1)], [(0, 32)], [(0, 2)], [(0, 32)], [(0, 3)]]
    assert sequence.tokens == continuation(range(2, 35), 36)


def test_the_youngest_is_preempted_and_changes_nothing() -> None:
    drill = Drill(config(8))
    prompts = [[i + 1, 7, 9, 11, 13] for i in range(3)]
    sequences = [drill.add(prompt, max_tokens=16) for prompt in prompts]
    preempted = False
    while drill.scheduler.has_work:
        before = list(drill.scheduler.running)
        drill.step()
        gone = [s for s in before if s.state is State.WAITING]
        assert gone == before[len(before) - len(gone) :]
        preempted = preempted or bool(gone)
    assert preempted
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.tokens == continuation(prompt, 21)


def test_one_sequence_may_fill_the_pool() -> None:
    drill = Drill(config(4, max_model_len=100))
    assert drill.scheduler.max_len == 16
    sequence = drill.add([2], max_tokens=100)
    drill.run()
    assert sequence.tokens == continuation([2], 16)


def test_a_prompt_that_fills_the_context_finishes_at_once() -> None:
    drill = Drill(config(max_model_len=20))
    sequence = drill.add(range(1, 21))
    assert (sequence.state, sequence.finish_reason) == (State.FINISHED, "length")
    assert not drill.scheduler.has_work


# Windows


@pytest.mark.parametrize("windows", [(8,), (0, 8), (1,), (3, 9)])
def test_a_sequence_needs_few_blocks_of_a_window_however_long_it_gets(windows: tuple[int, ...]) -> None:
    """Prompt and answer are many times as long as the window, and the window's pool holds what one sequence needs."""
    drill = Drill(config(windows=windows, spare=0, max_batch_tokens=6, prefix_cache_n=0))
    prompt = [i % 50 + 1 for i in range(90)]
    sequence = drill.add(prompt, max_tokens=100, endless=True)
    drill.run()
    assert sequence.tokens == continuation(prompt, 190, endless=True)
    for group, pool in zip(drill.config.kv_groups, drill.scheduler.blocks.pools, strict=True):
        assert pool.num_blocks <= 5 or not group.window


def test_blocks_behind_the_window_are_freed_after_the_step() -> None:
    drill = Drill(config(windows=(8,), prefix_cache_n=0))
    drill.add(range(1, 31), max_tokens=20)
    free = drill.scheduler.blocks.pools[0]
    plan = drill.plan()
    assert free.num_free == 64 - 8
    drawn = drill.compute(plan)
    assert free.num_free == 64 - 8
    drill.scheduler.commit(plan, drawn)
    assert free.num_free == 64 - 3  # of 30 tokens, 23 and later are seen, which begin in the sixth of eight blocks


def test_a_window_smaller_than_a_sequence_needs_shortens_it() -> None:
    drill = Drill(config(8, windows=(8,), max_batch_tokens=32))
    assert drill.scheduler.max_len == 32
    assert Drill(config(8, windows=(8,), max_batch_tokens=16)).scheduler.max_len == 200


@pytest.mark.parametrize("windows", [(8,), (0, 8), (1,), (5, 11)])
def test_the_next_turn_needs_the_window_at_the_end_alone(windows: tuple[int, ...]) -> None:
    drill = Drill(config(windows=windows, max_seqs=1))
    first = drill.add(range(1, 11), max_tokens=60, endless=True)
    drill.run()
    pool = drill.scheduler.blocks.pools[-1]  # that of the longest window
    assert pool.num_cached <= 2 + 3  # blocks of the prompt, and of the window at the end of the answer
    second = drill.add([*first.tokens, 7, 8], max_tokens=5)
    drill.run()
    assert second.num_cached == 68  # the last of the first turn's 70 tokens was never computed
    assert second.tokens == continuation([*first.tokens, 7, 8], 77)


@pytest.mark.parametrize("windows", [(8,), (0, 8), (8, 20)])
def test_many_clients_share_the_beginning_of_a_long_prompt(windows: tuple[int, ...]) -> None:
    """While the first one runs and after it has ended, although its window has long left the shared blocks behind."""
    drill = Drill(config(windows=windows))
    common = [i % 50 + 1 for i in range(60)]
    first = drill.add([*common, 1, 2, 3], max_tokens=100, endless=True)
    for _ in range(12):
        drill.step()
    assert first.num_window_evicted[-1] > 8
    others = [drill.add([*common, 20 + i, 30 + i, 40 + i], max_tokens=30) for i in range(6)]
    drill.run()
    late = drill.add([*common, 49], max_tokens=3)
    drill.run()
    assert [sequence.num_cached for sequence in (*others, late)] == [60] * 7


def test_a_hit_is_as_long_as_every_group_has_what_it_needs() -> None:
    """The last of the window's blocks were evicted; the others still make a shorter hit."""
    drill = Drill(config(windows=(0, 8)))
    prompt = list(range(1, 42))
    drill.add(prompt, max_tokens=1)
    drill.run()
    full, window = drill.scheduler.blocks.pools
    block_hashes = Sequence(9, list(prompt), SamplingParams(), 99).block_hashes(10, 4)
    assert len(full.match(block_hashes)) == len(window.match(block_hashes)) == 10
    kept = window.match(block_hashes)[3:7]
    window.acquire(kept)
    others = window.allocate(window.num_free)
    window.release(kept)
    window.release(others)
    again = drill.add(prompt, max_tokens=1)
    other = drill.add(prompt[:20], max_tokens=1)
    drill.run()
    assert again.num_cached == 28  # tokens 21 to 27 are seen from there: blocks 5 and 6
    assert other.num_cached == 0  # block 2 is gone, without which no hit ends at 16, nor at 12


@pytest.mark.parametrize(("length", "preempted"), [(2, True), (20, False)])
def test_windows_may_be_short_of_blocks(length: int, preempted: bool) -> None:
    """A sequence starts with room for all its known tokens, so that only answers can outgrow the pool."""
    drill = Drill(config(windows=(0, 8), spare=1, max_batch_tokens=8))
    prompts = [[number + 1] * length for number in range(4)]
    sequences = [drill.add(prompt, max_tokens=40, endless=True) for prompt in prompts]
    drill.run()
    assert bool(drill.scheduler.num_preemptions) == preempted
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.tokens == continuation(prompt, length + 40, endless=True)


def test_commit_skips_removed_sequences() -> None:
    drill = Drill(config())
    gone, stays = drill.add(range(1, 10)), drill.add(range(20, 30))
    plan = drill.plan()
    drawn = drill.compute(plan)
    drill.scheduler.remove(gone, retain=False)
    drill.scheduler.remove(gone, retain=False)
    drill.scheduler.commit(plan, drawn)
    drill.scheduler.check_integrity()
    assert (len(gone.tokens), len(stays.tokens)) == (9, 11)
    drill.run()


def test_tokens_behind_an_end_are_dropped_by_commit() -> None:
    """A draft may hold a token that ends the sequence, where the prompt holds it."""
    drill = Drill(config(max_draft=4, max_prompt_logits=8))
    prompt = [5, 6, 7, 8, 9, 5, 6]
    sequence = Sequence(0, list(prompt), SamplingParams(), 40, end_ids=frozenset({8}))
    drill.scheduler.add(sequence)
    drill.scheduler.commit(drill.plan(), {0: [7]})
    plan = drill.plan()
    [chunk] = plan.chunks
    assert chunk.draft_tokens[:2] == (8, 9)
    drill.scheduler.commit(plan, {0: [8, 9, 5]})
    assert (sequence.tokens, sequence.finish_reason) == ([*prompt, 7, 8], "stop")
    assert (drill.scheduler.num_drafted, drill.scheduler.num_accepted) == (len(chunk.draft_tokens), 0)
    drill.scheduler.check_integrity()
    assert drill.scheduler.blocks.num_free == drill.num_blocks


def test_forced_tokens_are_computed_together_and_before_prompts() -> None:
    drill = Drill(config())
    first = drill.add(range(1, 5), max_tokens=40, endless=True)
    drill.step()
    drill.add(range(1, 100), max_tokens=20)
    plan = drill.plan(prefill_limit=10)
    assert counts(plan) == [(0, 1), (1, 10)]
    drill.compute(plan)
    known = len(first.tokens)
    drill.scheduler.commit(plan, {0: continuation(first.tokens, known + 7, endless=True)[known:]})
    assert counts(drill.step(prefill_limit=10)) == [(0, 7), (1, 10)]
    assert len(first.tokens) == known + 8
    assert counts(drill.step(prefill_limit=10)) == [(0, 1), (1, 10)]
    drill.run()
    assert first.tokens == continuation(range(1, 5), 44, endless=True)


def test_a_forced_token_that_equals_a_draft_token_is_computed_with_it() -> None:
    drill = Drill(config(max_draft=3), habit=True)
    sequence = drill.add([*range(1, 9), *range(1, 9)], max_tokens=60, endless=True)
    while not (plan := drill.plan()).chunks[0].draft_tokens:
        drill.scheduler.commit(plan, drill.compute(plan))
    drill.compute(plan)
    [chunk] = plan.chunks
    draft = chunk.draft_tokens
    assert [chunk.num_accepted(tokens) for tokens in ([*draft, 9], draft, draft[:1], [99, *draft])] == [
        len(draft),
        len(draft) - 1,
        0,
        0,
    ]
    before = sequence.num_computed
    drill.scheduler.commit(plan, {0: [*draft, 9, 9, 9]})
    assert sequence.num_computed == before + 1 + len(draft)
    assert sequence.num_remaining == 3


def test_steps_in_a_row_are_for_sequences_that_decode_freely() -> None:
    """Each case has two sequences, of which the second has a reason against it, and how many steps there may be."""
    cases: list[tuple[dict[str, Any], dict[str, Any], int]] = [
        ({}, {}, 8),
        ({}, {"takes_steps": False}, 1),
        ({}, {"constraint": object()}, 1),
        ({}, {"sampling": SamplingParams(min_tokens=2)}, 1),
        ({}, {"sampling": SamplingParams(min_tokens=1)}, 8),
        ({"no_kv_cache": True}, {}, 1),
        ({"max_draft": 3}, {}, 8),
    ]
    for changes, values, expected in cases:
        drill = Drill(config(**changes), max_steps=8)
        for number in range(2):
            sequence = drill.add([7 + number], max_tokens=30, endless=True)
        for name, value in values.items():
            setattr(sequence, name, value)
        assert drill.step().num_steps == 1
        assert drill.plan().num_steps == expected, (changes, values)


def test_steps_in_a_row_end_at_the_longest_answer_and_at_full_memory() -> None:
    drill = Drill(config(), max_steps=8)
    drill.add([7], max_tokens=30, endless=True)
    drill.add([8], max_tokens=4, endless=True)
    drill.step()
    assert drill.plan().num_steps == 3
    full = Drill(config(8), max_steps=8)
    for first in (0, 20):
        full.add(range(first + 1, first + 10), max_tokens=20, endless=True)
    full.step()
    assert [full.plan().num_steps for _ in range(3)] == [1] * 3  # one of the two has room
    full.run()


def test_nothing_waits_behind_steps_in_a_row() -> None:
    drill = Drill(config(max_seqs=1), max_steps=8)
    drill.add([7], max_tokens=30, endless=True)
    drill.step()
    drill.add([8], max_tokens=30, endless=True)
    assert drill.plan().num_steps == 1


def test_steps_in_a_row_are_no_draft_tokens() -> None:
    drill = Drill(config(max_draft=3), max_steps=4)
    sequence = drill.add([7], max_tokens=40, endless=True)
    drill.run()
    assert sequence.tokens == continuation([7], 41, endless=True)
    assert drill.scheduler.num_drafted == sequence.ngram_proposer.num_drafted


def test_old_sequences_are_forgotten() -> None:
    drill = Drill(config(prefix_cache_n=1))
    drill.add(range(1, 10), max_tokens=1)
    drill.run()
    drill.add(range(20, 30), max_tokens=1)
    drill.run()
    again = drill.add(range(1, 10), max_tokens=1)
    drill.run()
    assert again.num_cached == 0


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps before it comes
        st.integers(0, 3),  # which text its prompt is the beginning of; 3: a sequence so far, as in a chat
        st.integers(1, 40),  # prompt tokens
        st.integers(1, 20),  # max_tokens
        st.sampled_from([None, None, None, 0, 2, 9]),  # steps after which it is cancelled
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(12, 40),
    windows=st.sampled_from([(0,), (0, 5), (7,), (1,), (0, 1, 12), (3, 30)]),
    spare=st.sampled_from([None, 0, 1, 5, 20]),
    max_seqs=st.integers(1, 5),
    max_batch_tokens=st.integers(1, 24),
    block_size=st.integers(1, 6),
    prefix_cache_n=st.integers(0, 3),
    max_evictable_blocks=st.sampled_from([0, 0, 1, 4, 100]),
    connector=st.sampled_from([None, 0, 3, 7]),
    no_kv_cache=st.booleans(),
    max_draft=st.sampled_from([0, 1, 3, 15]),
    max_prompt_logits=st.sampled_from([0, 2, 64]),
    prefill_limit=st.integers(1, 20),
    drop_every=st.integers(2, 9),
    shared_answer_tokens=st.sampled_from([None, None, 0, 1, 6]),
    forces_or_steps=st.sampled_from([True, 1, 2, 5, 8]),
)
def test_whatever_the_schedule_the_tokens_are_the_same(
    arrivals: list[tuple[int, int, int, int, int | None]],
    prefill_limit: int,
    drop_every: int,
    connector: int | None,
    forces_or_steps: int,
    **changes: Any,
) -> None:
    """``connector``: one in how many blocks is lost from it, 0 for none; None: there is no connector.
    ``forces_or_steps``: True, or steps in a row, which sequences with forced tokens do not have."""
    limits = config(max_model_len=48, **changes)
    memory: list[dict[int, tuple[int, int]]] = [{} for _ in limits.kv_groups]
    kept = None if connector is None else FakeKvConnector(memory, block_size=limits.block_size, lose_every=connector)
    drill = Drill(limits, connector=kept, habit=True, forces=forces_or_steps is True, max_steps=int(forces_or_steps))
    texts = [[(17 * text + i * i) % 50 + 1 for i in range(40)] for text in range(3)]
    served: list[tuple[Sequence, list[int], int]] = []
    cancels: dict[int, list[Sequence]] = {}
    clock = 0

    def advance() -> None:
        nonlocal clock
        for sequence in cancels.pop(clock, []):
            drill.scheduler.remove(sequence, retain=clock % 2 == 0)
            drill.scheduler.check_integrity()
        if drill.scheduler.has_work:
            # Now and then a plan is dropped, as after a step that was cancelled.
            drill.plan(prefill_limit) if clock % drop_every == 0 else drill.step(prefill_limit)
        clock += 1

    for wait, text, length, max_tokens, cancel_after in arrivals:
        for _ in range(wait):
            advance()
        known = texts[text] if text < 3 else served[-1][0].tokens if served else texts[0]
        prompt = known[: drill.scheduler.max_len if text == 3 else min(length, drill.scheduler.max_len)]
        sequence = drill.add(prompt, max_tokens)
        served.append((sequence, prompt, max_tokens))
        if cancel_after is not None:
            cancels.setdefault(clock + cancel_after, []).append(sequence)
    while drill.scheduler.has_work or cancels:
        advance()
        assert clock < 20000
    for sequence, prompt, max_tokens in served:
        expected = continuation(prompt, min(len(prompt) + max_tokens, drill.scheduler.max_len), habit=True)
        assert sequence.tokens == expected[: len(sequence.tokens)]
        assert sequence.tokens == expected or sequence.finish_reason is None
    assert drill.scheduler.blocks.num_free == drill.num_blocks
