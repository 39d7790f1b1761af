"""Draft tokens: which are proposed, how their number adapts, and how many the scheduler takes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.config import EngineConfig, SamplingParams
from mistralrs.engine.copy_source import WordPart
from mistralrs.engine.draft_gain import DraftGain
from mistralrs.engine.drafter import Drafter
from mistralrs.engine.engine import Engine
from mistralrs.engine.ngram_proposer import (
    BALANCE_SHARE,
    MAX_BALANCE,
    MAX_DRAFT_TOKENS,
    NGRAM_LENGTHS,
    NgramProposer,
)
from mistralrs.engine.scheduler import MAX_DRAFT_BATCH, Chunk, Plan
from mistralrs.engine.sequence import Sequence
from mistralrs.errors import UsageError
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import FakeRunner, FakeTokenizer
from tests.engine.test_scheduler import Drill, config, continuation

WRONG = 60
"""A token that no drill samples."""


def naive(tokens: list[int], count: int) -> tuple[int, ...]:
    """The tokens after the last earlier occurrence of the last three tokens, or else of the last two; at the end of the
    text they begin anew."""
    for length in NGRAM_LENGTHS:
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return tuple(itertools.islice(itertools.cycle(tokens[end:]), count))
    return ()


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    looks=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 6)), min_size=1, max_size=20),
)
def test_the_index_finds_what_a_search_finds(tokens: list[int], looks: list[tuple[int, int]]) -> None:
    """The index does not depend on the number of tokens that are new since the last call."""
    draft = NgramProposer()
    for length, count in sorted(looks):
        known = tokens[:length]
        draft.propose(known, count)
        draft._source = None
        assert draft.propose(known, count) == naive(known, count)


@settings(max_examples=100, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=4, max_size=60),
    counts=st.lists(st.integers(1, 20), min_size=60, max_size=60),
    rights=st.lists(st.integers(0, 20), min_size=60, max_size=60),
)
def test_drafts_are_bounded_and_counted(tokens: list[int], counts: list[int], rights: list[int]) -> None:
    draft = NgramProposer(part=lambda token: list(WordPart)[token])
    drafted = accepted = 0
    for length, count, right in zip(range(1, len(tokens) + 1), counts, rights, strict=False):
        proposed = draft.propose(tokens[:length], count)
        assert len(proposed) <= min(count, MAX_DRAFT_TOKENS)
        assert len(draft.chances()) == len(proposed)
        assert all(0 < chance < 1 for chance in draft.chances())
        if proposed:
            right = min(right, len(proposed))
            draft.record_acceptance(len(proposed), right)
            drafted, accepted = drafted + len(proposed), accepted + right
    assert (draft.num_drafted, draft.num_accepted) == (drafted, accepted)


def test_chances_follow_what_came_even_where_nothing_was_drafted() -> None:
    """The tokens of a proposal count up to the first that is another one."""
    text, chances = [*range(40), 0, 1, 2], []
    for came in ([3, 50, 51, 0, 1, 2], [50, 51, 0, 1, 2]):
        proposer = NgramProposer()
        assert proposer.propose(text, 4) == (3, 4, 5, 6)
        first = proposer.chances()
        assert proposer.propose([*text, *came], 1) == (came[0],)
        chances += proposer.chances()
    assert chances[0] > first[0] > chances[1]


def test_a_text_is_indexed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index adds only the tokens that are new at each call."""
    taken: list[int] = []
    original = NgramProposer._index

    def index(self: NgramProposer, tokens: list[int]) -> None:
        before = len(self._following)
        original(self, tokens)
        taken.append(len(self._following) - before)

    monkeypatch.setattr(NgramProposer, "_index", index)
    draft, tokens = NgramProposer(), list(range(500))
    for _ in range(5):
        assert draft.propose(tokens, 3) == ()
        tokens.append(len(tokens))
    assert taken == [498 + 497, 2, 2, 2, 2]


def test_a_sequence_whose_drafts_lost_time_needs_likelier_ones() -> None:
    """The loss of each sequence is bounded by itself: what other texts gained is not for it to lose."""
    gain = DraftGain()
    for rows, seconds in ((2, 0.0013), (1, 0.001)):
        gain.on_step(1, rows, tokens=rows, seconds=seconds)
    drafter = Drafter(gain=gain)
    losing, other = (Sequence(number, [*range(40), 0, 1, 2, 3], SamplingParams(), 100) for number in range(2))
    losses = 0
    while draft := drafter.propose([losing], [1], 1)[0][0]:
        losing.ngram_proposer.record_acceptance(len(draft), 0)
        drafter.on_step([Chunk(losing, 43, 2, True, draft_tokens=draft)], 1, 0.0013)
        losses += 1
    assert losses == 2  # FIRST_BALANCE is one of them
    assert losing.ngram_proposer.balance < 0
    assert drafter.propose([other], [1], 1)[0] == [(4,)]
    while losing.ngram_proposer.balance < 0:
        drafter.on_step([Chunk(losing, 43, 1, True)], 1, 0.001)
    assert drafter.propose([losing], [1], 1)[0] == [(4,)]


def test_drafts_that_are_right_pay_for_later_ones() -> None:
    proposer = NgramProposer()
    for _ in range(20):
        proposer.record_acceptance(3, 3)
        proposer.settle(1.0)
    assert proposer.balance == MAX_BALANCE
    proposer.settle(2.0)
    assert proposer.balance == pytest.approx(MAX_BALANCE - 2 + BALANCE_SHARE)


# Draft tokens in the scheduler


def propose_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposes drafts that are as long as they may be, and wrong."""
    monkeypatch.setattr(NgramProposer, "propose", lambda self, tokens, count: (WRONG,) * count)


def propose_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposes drafts that are as long as they may be, and right."""

    def propose(self: NgramProposer, tokens: list[int], count: int) -> tuple[int, ...]:
        return tuple(continuation(tokens, len(tokens) + count, endless=True)[len(tokens) :])

    monkeypatch.setattr(NgramProposer, "propose", propose)


def drafts(plan: Plan) -> list[int]:
    return [len(chunk.draft_tokens) for chunk in plan.chunks]


@pytest.mark.parametrize("windows", [(0,), (8,), (0, 8)])
def test_accepted_draft_tokens_save_steps(windows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    propose_right(monkeypatch)
    drill = Drill(config(windows=windows, max_draft=15))
    sequence = drill.add(range(1, 30), max_tokens=65, endless=True)
    assert drill.run() == 1 + 4  # the first token comes with the prompt
    assert sequence.tokens == continuation(range(1, 30), 29 + 65, endless=True)
    assert (drill.scheduler.num_drafted, drill.scheduler.num_accepted) == (60, 60)
    assert (sequence.ngram_proposer.num_drafted, sequence.ngram_proposer.num_accepted) == (60, 60)


def test_an_end_among_accepted_draft_tokens_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    propose_right(monkeypatch)
    ended = 0
    for first in range(1, 40):
        drill = Drill(config(max_draft=15))
        sequence = drill.add([first], max_tokens=60)
        drill.run()
        assert sequence.tokens == continuation([first], 61)
        assert sequence.ngram_proposer.num_accepted <= sequence.ngram_proposer.num_drafted
        ended += (
            sequence.finish_reason == "stop"
            and sequence.ngram_proposer.num_accepted < sequence.ngram_proposer.num_drafted
        )
    assert ended


@pytest.mark.parametrize("windows", [(0,), (8,), (0, 8)])
@pytest.mark.parametrize("num_blocks", [14, 17, 64])
def test_rejected_draft_tokens_change_no_step(
    windows: tuple[int, ...], num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take no blocks from others and leave nothing in the cache: later sequences find the same prefixes."""
    propose_wrong(monkeypatch)
    seen = []
    for max_draft in (0, 5):
        drill = Drill(config(num_blocks, windows=windows, max_batch_tokens=8, max_draft=max_draft))
        sequences = [drill.add([number + 1] * 6, max_tokens=18 + number, endless=True) for number in range(3)]
        steps = drill.run()
        later = [drill.add([*sequence.tokens, 1], max_tokens=2) for sequence in sequences]
        drill.run()
        scheduler = drill.scheduler
        hits = [sequence.num_cached for sequence in later]
        seen.append((steps, scheduler.num_preemptions, hits, scheduler.blocks.num_cached))
        assert (scheduler.num_drafted > 0, scheduler.num_accepted) == (max_draft > 0, 0)
        assert [sequence.tokens for sequence in sequences] == [
            continuation([number + 1] * 6, 24 + number, endless=True) for number in range(3)
        ]
    assert seen[0] == seen[1]


def test_draft_tokens_are_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    propose_wrong(monkeypatch)
    drill = Drill(config(max_seqs=MAX_DRAFT_BATCH, max_draft=15, num_blocks=200))
    plans = []
    for number in range(MAX_DRAFT_BATCH):
        drill.add([number + 1] * 4, max_tokens=50, endless=True)
        drill.step()
        plans.append(drafts(drill.step()))
    assert plans[:4] == [[15], [7, 7], [4, 4, 5], [3] * 4]
    assert [sum(plan) for plan in plans] == [MAX_DRAFT_BATCH - len(plan) for plan in plans]
    assert all(max(plan) - min(plan) <= 1 for plan in plans)


def test_short_drafts_leave_their_room_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    draft_lengths = {1: 0, 2: 1, 3: 9}
    monkeypatch.setattr(
        NgramProposer, "propose", lambda self, tokens, count: (WRONG,) * min(draft_lengths[tokens[0]], count)
    )
    drill = Drill(config(max_draft=15))
    for first in draft_lengths:
        drill.add([first] * 4, max_tokens=50, endless=True)
    drill.step()
    assert drafts(drill.step()) == [0, 1, 9]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 6),
        ({"max_draft": 0}, 0),
        ({"max_draft": 2}, 2),
        ({"max_batch_tokens": 4}, 3),
        ({"max_prompt_logits": 1}, 1),
        ({"no_kv_cache": True}, 0),
        ({"num_blocks": 2}, 3),  # one token is sampled after the draft tokens, for which there is no room
    ],
    ids=str,
)
def test_drafts_fit_into_the_limits(changes: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    propose_wrong(monkeypatch)
    drill = Drill(config(**{"max_draft": 6, **changes}))
    drill.add([1, 2, 3], max_tokens=20, endless=True)
    drill.step()
    assert drafts(drill.step()) == [expected]


def test_near_the_end_drafts_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    propose_wrong(monkeypatch)
    drill = Drill(config(max_draft=4))
    drill.add([1, 2, 3], max_tokens=7, endless=True)
    drill.step()
    assert [drafts(drill.step()) for _ in range(6)] == [[4], [4], [3], [2], [1], [0]]


def test_nothing_is_drafted_beside_prompts_or_while_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    propose_wrong(monkeypatch)
    drill = Drill(config(max_draft=4, max_seqs=2))
    drill.add([1, 2, 3], max_tokens=30, endless=True)
    assert [drafts(drill.step()) for _ in range(2)] == [[0], [4]]
    drill.add(range(1, 50), max_tokens=3, endless=True)
    drill.add(range(1, 50), max_tokens=3, endless=True)
    plans = [drill.step() for _ in range(8)]
    assert [
        (chunk.sequence.id, chunk.num_committed) for plan in plans for chunk in plan.chunks if chunk.sequence.id
    ] == [
        *((1, 31), (1, 18), (1, 1), (1, 1)),
        *((2, 1), (2, 1), (2, 1)),
    ]
    assert [drafts(plan) for plan in plans] == [[0, 0]] * 4 + [[0, 0], [4, 1], [4, 0], [4]]


@pytest.mark.parametrize("dropped", [False, True])
def test_blocks_of_rejected_draft_tokens_are_free_for_others(dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a plan that was dropped, as that of a step which was cancelled."""
    propose_wrong(monkeypatch)
    drill = Drill(config(num_blocks=3, max_draft=3))
    old = drill.add([1, 2], max_tokens=9, endless=True)
    young = drill.add([3, 4, 5], max_tokens=9, endless=True)
    drill.step()
    if dropped:
        assert drafts(drill.plan()) == [3, 0]
    assert drafts(drill.step()) == [3, 0]  # the old one's draft tokens take the last block, which the young one needs
    assert [len(sequence.block_tables[0]) for sequence in (old, young)] == [2, 1]
    assert drafts(drill.step()) == [0, 3]
    assert [len(sequence.block_tables[0]) for sequence in (old, young)] == [1, 2]
    assert drill.scheduler.num_preemptions == 0


def test_max_draft_is_not_negative() -> None:
    limits = EngineConfig(kv_groups=(KvGroup(9),), max_model_len=20, max_draft=-1)
    with pytest.raises(UsageError, match="max_draft is -1"):
        Engine(FakeRunner(block_size=4), FakeTokenizer(), limits)  # type: ignore[arg-type]
