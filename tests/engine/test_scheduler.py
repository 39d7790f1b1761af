"""The scheduler's promises, one by one and under a random drill, with tokens that depend on the whole history."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Row

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.batch import Batch
from mistralrs.engine.config import EngineConfig, SamplingParams
from mistralrs.engine.scheduler import Plan, Scheduler
from mistralrs.engine.sequence import Sequence, State

EOS = 0
UNLIMITED = 10**6


def config(**changes: int | bool) -> EngineConfig:
    values = {"num_blocks": 64, "max_model_len": 200, "max_seqs": 4, "max_batch_tokens": 32, "block_size": 4}
    return EngineConfig(**{**values, **changes})  # type: ignore[arg-type]


def next_token(history: Row[int]) -> int:
    """1 to 50, or the end token once in 40 times."""
    value = hashlib.blake2b(str(list(history)).encode()).digest()[0]
    return EOS if value % 40 == 0 else value % 50 + 1


def continuation(prompt: Row[int], max_len: int) -> list[int]:
    """What a sequence must end as, whatever the schedule."""
    tokens = list(prompt)
    while len(tokens) < max_len:
        tokens.append(next_token(tokens))
        if tokens[-1] == EOS:
            break
    return tokens


class Drill:
    """Runs a scheduler against a memory of tokens, checking every step."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.scheduler = Scheduler(config, frozenset({EOS}))
        self.memory: dict[int, tuple[int, int]] = {}
        self.count = 0

    def add(self, prompt: Row[int], max_tokens: int = 8, identity: str = "") -> Sequence:
        max_len = min(len(prompt) + max_tokens, self.scheduler.max_len)
        sequence = Sequence(self.count, list(prompt), SamplingParams(), max_len, identity)
        self.count += 1
        self.scheduler.add(sequence)
        return sequence

    def plan(self, prefill_limit: int = UNLIMITED) -> Plan:
        plan = self.scheduler.plan(prefill_limit)
        self.scheduler.pool.check_integrity()
        assert sum(chunk.count for chunk in plan.chunks) <= self.config.max_batch_tokens
        assert len(self.scheduler.running) <= self.config.max_seqs
        order = [s.id for s in (*self.scheduler.running, *self.scheduler.waiting)]
        assert order == sorted(order), "first come, first served"
        return plan

    def compute(self, plan: Plan) -> dict[int, int]:
        batch = Batch.from_plan(plan, block_size=self.config.block_size)
        assert len(set(batch.slots)) == len(batch.slots)
        for slot, token, position in zip(batch.slots, batch.tokens, batch.positions, strict=True):
            self.memory[slot] = (token, position)
        drawn = {}
        for chunk, table in zip(plan.chunks, batch.block_tables, strict=True):
            if chunk.samples:
                size = self.config.block_size
                seen = [self.memory[table[p // size] * size + p % size] for p in range(chunk.start + chunk.count)]
                assert seen == [(token, position) for position, token in enumerate(chunk.sequence.tokens)]
                drawn[chunk.sequence.id] = next_token(chunk.sequence.tokens)
        return drawn

    def step(self, prefill_limit: int = UNLIMITED) -> Plan:
        plan = self.plan(prefill_limit)
        self.scheduler.commit(plan, self.compute(plan))
        self.scheduler.pool.check_integrity()
        return plan

    def run(self) -> int:
        steps = 0
        while self.scheduler.has_work:
            self.step()
            steps += 1
            assert steps < 5000
        assert self.scheduler.pool.num_free == self.config.num_blocks
        return steps


def counts(plan: Plan) -> list[tuple[int, int]]:
    return [(chunk.sequence.id, chunk.count) for chunk in plan.chunks]


def test_a_long_prompt_is_cut_in_chunks() -> None:
    drill = Drill(config())
    sequence = drill.add(range(1, 71), max_tokens=2)
    assert [counts(drill.step()) for _ in range(4)] == [[(0, 32)], [(0, 32)], [(0, 6)], [(0, 1)]]
    assert sequence.tokens == continuation(range(1, 71), 72)
    assert sequence.finish_reason == "length"


def test_decode_rows_come_first_and_limit_the_prefill_beside_them() -> None:
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
    assert drill.scheduler.pool.num_cached == 0
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


def test_only_what_was_computed_is_kept() -> None:
    drill = Drill(config(max_batch_tokens=10))
    gone = drill.add(range(1, 30))
    drill.step()
    drill.scheduler.remove(gone, keep=True)
    again = drill.add(range(1, 30))
    drill.run()
    assert again.num_cached == 8
    assert again.tokens == continuation(range(1, 30), 37)


def test_identities_do_not_share() -> None:
    drill = Drill(config())
    drill.add(range(1, 14), max_tokens=1, identity="a")
    drill.run()
    other = drill.add(range(1, 14), max_tokens=1, identity="b")
    same = drill.add(range(1, 14), max_tokens=1, identity="a")
    drill.run()
    assert (other.num_cached, same.num_cached) == (0, 12)


def test_running_sequences_share_blocks_too() -> None:
    drill = Drill(config())
    drill.add(range(1, 14), max_tokens=8)
    drill.step()
    sharer = drill.add(range(1, 14), max_tokens=8)
    drill.step()
    assert sharer.num_cached == 12
    assert drill.scheduler.running[0].blocks[:3] == sharer.blocks[:3]
    drill.run()
    assert sharer.tokens == continuation(range(1, 14), 21)


@pytest.mark.parametrize("changes", [{"prefix_cache_n": 0}, {"no_kv_cache": True}])
def test_without_reuse_nothing_is_shared(changes: dict[str, int]) -> None:
    drill = Drill(config(**changes))
    for _ in range(2):
        sequence = drill.add(range(1, 14), max_tokens=3)
        drill.run()
        assert sequence.num_cached == 0
        assert sequence.tokens == continuation(range(1, 14), 16)
    assert drill.scheduler.pool.num_cached == 0


def test_without_kv_cache_every_token_costs_the_whole_sequence() -> None:
    drill = Drill(config(no_kv_cache=True))
    sequence = drill.add(range(2, 35), max_tokens=3)
    assert len(continuation(range(2, 35), 36)) == 36
    assert [counts(drill.step()) for _ in range(6)] == [[(0, 32)], [(0, 1)], [(0, 32)], [(0, 2)], [(0, 32)], [(0, 3)]]
    assert sequence.tokens == continuation(range(2, 35), 36)


def test_the_youngest_is_preempted_and_changes_nothing() -> None:
    drill = Drill(config(num_blocks=8))
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
    drill = Drill(config(num_blocks=4, max_model_len=100))
    assert drill.scheduler.max_len == 16
    sequence = drill.add([2], max_tokens=100)
    drill.run()
    assert sequence.tokens == continuation([2], 16)


def test_a_prompt_that_fills_the_context_finishes_at_once() -> None:
    drill = Drill(config(max_model_len=20))
    sequence = drill.add(range(1, 21))
    assert (sequence.state, sequence.finish_reason) == (State.FINISHED, "length")
    assert not drill.scheduler.has_work


def test_removed_sequences_are_passed_over_by_commit() -> None:
    drill = Drill(config())
    gone, stays = drill.add(range(1, 10)), drill.add(range(20, 30))
    plan = drill.plan()
    drawn = drill.compute(plan)
    drill.scheduler.remove(gone, keep=False)
    drill.scheduler.remove(gone, keep=False)
    drill.scheduler.commit(plan, drawn)
    drill.scheduler.pool.check_integrity()
    assert (len(gone.tokens), len(stays.tokens)) == (9, 11)
    drill.run()


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
        st.integers(0, 2),  # which text its prompt is the beginning of
        st.integers(1, 40),  # prompt tokens
        st.integers(1, 20),  # max_tokens
        st.sampled_from([None, None, None, 0, 2, 9]),  # steps after which it is cancelled
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(12, 40),
    max_seqs=st.integers(1, 5),
    max_batch_tokens=st.integers(1, 24),
    block_size=st.integers(1, 6),
    prefix_cache_n=st.integers(0, 3),
    no_kv_cache=st.booleans(),
    prefill_limit=st.integers(1, 20),
    drop_every=st.integers(2, 9),
)
def test_whatever_the_schedule_the_tokens_are_the_same(
    arrivals: list[tuple[int, int, int, int, int | None]], prefill_limit: int, drop_every: int, **changes: int
) -> None:
    drill = Drill(config(max_model_len=48, **changes))
    texts = [[(17 * text + i * i) % 50 + 1 for i in range(40)] for text in range(3)]
    served: list[tuple[Sequence, list[int], int]] = []
    cancels: dict[int, list[Sequence]] = {}
    clock = 0

    def advance() -> None:
        nonlocal clock
        for sequence in cancels.pop(clock, []):
            drill.scheduler.remove(sequence, keep=clock % 2 == 0)
            drill.scheduler.pool.check_integrity()
        if drill.scheduler.has_work:
            # Now and then a plan is dropped, as after a step that was cancelled.
            drill.plan(prefill_limit) if clock % drop_every == 0 else drill.step(prefill_limit)
        clock += 1

    for wait, text, length, max_tokens, cancel_after in arrivals:
        for _ in range(wait):
            advance()
        prompt = texts[text][: min(length, drill.scheduler.max_len)]
        sequence = drill.add(prompt, max_tokens)
        served.append((sequence, prompt, max_tokens))
        if cancel_after is not None:
            cancels.setdefault(clock + cancel_after, []).append(sequence)
    while drill.scheduler.has_work or cancels:
        advance()
        assert clock < 20000
    for sequence, prompt, max_tokens in served:
        expected = continuation(prompt, min(len(prompt) + max_tokens, drill.scheduler.max_len))
        assert sequence.tokens == expected[: len(sequence.tokens)]
        assert sequence.tokens == expected or sequence.finish_reason is None
    assert drill.scheduler.pool.num_free == drill.config.num_blocks
