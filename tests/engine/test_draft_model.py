"""A draft model changes no answer: alone, in batches, with grammars and adapters, with few blocks of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig, Request
from mistralrs.engine.draft_model import ModelToDraft
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Usage
from mistralrs.engine.stats import EngineStats
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import FakeRunner, FakeTokenizer
from tests.engine.test_engine import collect
from tests.engine.test_request_adapters import CONFIG as WITH_ADAPTERS
from tests.engine.test_request_adapters import A, B, C, D, solo_answers
from tests.engine.test_request_adapters import requests as adapter_requests
from tests.engine.test_request_adapters import tokens_of as streamed_tokens
from tests.engine.test_request_grammars import PATTERNS
from tests.engine.test_request_grammars import request as grammar_request
from tests.engine.test_speculation import CONFIG, GREEDY, REQUESTS, Answer, alone, split_events

DRAFTING = replace(CONFIG, max_draft=7, prefix_cache_n=2)
DRAFT = EngineConfig(kv_groups=(KvGroup(60),), max_model_len=120, max_seqs=4, max_batch_tokens=16, block_size=4)


@dataclass(frozen=True, slots=True)
class Drafted:
    answers: list[Answer]
    usages: list[Usage]
    stats: EngineStats


@contextmanager
def drafting(
    config: EngineConfig = DRAFTING,
    draft: EngineConfig = DRAFT,
    *,
    habit: float = 0.0,
    draft_habit: float | None = None,
) -> Iterator[tuple[Engine, FakeRunner]]:
    """An engine with the draft model that ``draft_habit`` makes differ from the target; None: it is the same."""
    runners = [
        FakeRunner(block_size=each.block_size, windows=[group.window for group in each.kv_groups], habit=of)
        for each, of in ((config, habit), (draft, habit if draft_habit is None else draft_habit))
    ]
    engine = Engine(runners[0], FakeTokenizer(), config, draft_model=ModelToDraft(runners[1], draft))  # type: ignore[arg-type]
    try:
        yield engine, runners[1]
        model = engine._core._draft_model
        assert model is engine._core._drafter.model is not None, "the draft model failed"
        model.blocks.check_integrity([])
        assert model.blocks.num_free == model.blocks.num_blocks
    finally:
        engine.close()


def ask(requests: list[Request], *args: Any, **options: Any) -> Drafted:
    with drafting(*args, **options) as (engine, _):
        streams = [engine.submit(request) for request in requests]
        results = [split_events(list(stream)) for stream in streams]
        assert engine.stats().free_blocks == engine.stats().num_blocks
        return Drafted([answer for answer, _ in results], [usage for _, usage in results], engine.stats())


@settings(max_examples=12, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=4),
    windows=st.sampled_from([(0,), (0,), (0, 5), (7,)]),
    num_blocks=st.sampled_from([60, 20, 8]),
    draft_habit=st.sampled_from([0.0, 6.0, 9.0]),
    max_draft=st.sampled_from([1, 3, 7]),
    draft_seqs=st.integers(1, 4),
    draft_batch=st.sampled_from([4, 16]),
    draft_len=st.sampled_from([120, 30]),
)
def test_a_draft_model_changes_no_answer(
    requests: list[Request],
    windows: tuple[int, ...],
    num_blocks: int,
    draft_habit: float,
    max_draft: int,
    draft_seqs: int,
    draft_batch: int,
    draft_len: int,
) -> None:
    """A good one and a bad one, with few blocks and a short context."""
    draft = replace(
        DRAFT,
        kv_groups=tuple(KvGroup(num_blocks, window) for window in windows),
        max_seqs=draft_seqs,
        max_batch_tokens=draft_batch,
        max_model_len=min(draft_len, 4 * num_blocks),
    )
    expected = alone(CONFIG, requests, habit=6.0)
    config = replace(DRAFTING, max_draft=max_draft)
    assert ask(requests, config, draft, habit=6.0, draft_habit=draft_habit).answers == expected


def test_a_model_that_agrees_saves_steps() -> None:
    """Also where tokens are drawn, because it draws with the same random numbers."""
    drawn = replace(GREEDY, temperature=1.2, seed=3)
    for sampling in (GREEDY, drawn, replace(drawn, dry_multiplier=0.8)):
        request = Request((20, 45, 11, 33, 70), sampling)
        drafted = ask([request])
        assert drafted.answers == alone(CONFIG, [request], habit=0.0)
        assert drafted.usages[0].accepted_tokens == drafted.usages[0].drafted_tokens == 34
        assert drafted.stats.steps == 40 - 34


def test_a_batch_shares_the_passes_of_the_draft_model() -> None:
    requests = [Request((20 + number, 45, 11, 33 + number), replace(GREEDY, seed=number)) for number in range(3)]
    with drafting() as (engine, draft):
        streams = [engine.submit(request) for request in requests]
        answers = [split_events(list(stream))[0] for stream in streams]
        assert max(len(batch.seq_lens) for batch in draft.batches) == 3
        assert engine.stats().accepted_tokens > 30
    assert answers == alone(CONFIG, requests, habit=0.0)


def test_the_next_turn_reads_only_what_is_new() -> None:
    """The draft model finds the KV of the turn before, for the same cache salt only."""
    first = Request(tuple(range(20, 60)), GREEDY)
    for salt, read in (("", range(1, 20)), ("other", range(80, 100))):
        with drafting() as (engine, draft):
            _, tokens, _ = collect(engine.submit(first))
            before = len(draft.batches)
            turn = Request((*first.prompt, *tokens, 70), replace(GREEDY, max_tokens=2), cache_salt=salt)
            collect(engine.submit(turn))
            assert len(draft.batches) == before  # one token is no reason to draft
            collect(engine.submit(replace(turn, sampling=replace(GREEDY, max_tokens=4))))
            assert sum(len(batch.tokens) for batch in draft.batches[before:]) in read


def test_under_grammars() -> None:
    requests = [grammar_request(pattern, seed=seed, max_tokens=30) for pattern in PATTERNS for seed in range(2)]
    assert ask(requests).answers == alone(CONFIG, requests, habit=0.0)
    requests = [grammar_request("[a-l]{59}i", seed=seed, max_tokens=60) for seed in range(2)]
    drafted = ask(requests)
    assert drafted.answers == alone(CONFIG, requests, habit=0.0)
    assert drafted.stats.accepted_tokens > 10


def test_with_adapters_on_the_target() -> None:
    """They act on the target alone: the draft model is the same for all."""
    expected = solo_answers()
    with drafting(replace(WITH_ADAPTERS, max_draft=3)) as (engine, draft):
        engine._core._executor.slots = dict(enumerate((A, B, C, D)))  # type: ignore[attr-defined]
        streams = [engine.submit(request) for request in adapter_requests()]
        assert [streamed_tokens(list(stream)) for stream in streams] == expected
        assert engine.stats().accepted_tokens > 0
    assert not any(uses for batch in draft.batches for uses in batch.adapters)


class Failing(FakeRunner):
    """Fails from its third pass on."""

    def logits(self, batch: Batch, cancel_flag: CancelFlag) -> torch.Tensor:
        if len(self.batches) >= 2:
            raise RuntimeError("no more")
        return super().logits(batch, cancel_flag)


def test_answers_go_on_without_a_model_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    request = Request((20, 45, 11, 33, 70), GREEDY)
    model = ModelToDraft(Failing(block_size=4), DRAFT)  # type: ignore[arg-type]
    engine = Engine(FakeRunner(block_size=4), FakeTokenizer(), DRAFTING, draft_model=model)  # type: ignore[arg-type]
    try:
        with caplog.at_level(logging.ERROR):
            assert split_events(list(engine.submit(request)))[0] == alone(CONFIG, [request], habit=0.0)[0]
        assert "the draft model failed: answers go on without it" in caplog.text
    finally:
        engine.close()
