"""Drafting changes no answer: every stream has the same tokens with and without it, and so has the cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Delta, Event, Failed, Finished, PromptLogprobs, Usage
from mistralrs.engine.scheduler import MAX_DRAFT_BATCH
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import EOS, VOCAB, FakeRunner, FakeTokenizer, Turnstile, after_each_step
from tests.engine.test_engine import serving

CONFIG = EngineConfig(kv_groups=(KvGroup(60),), max_model_len=120, max_seqs=4, max_batch_tokens=32, block_size=4)
GUESSING = replace(CONFIG, max_draft=15)
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
PROMPT = (20, 21, 22, 23) * 4
RIGID = 1000.0
"""A habit that outweighs the history: greedy answers repeat themselves."""
LOOSE = 9.0
"""A habit that the history breaks now and then."""


@dataclass(frozen=True, slots=True)
class Answer:
    events: tuple[Event, ...]
    """Events before the end, all Deltas joined: drafting decides how they fall into steps."""
    end: str
    """A reason, or the message of an error."""
    prompt_tokens: int
    completion_tokens: int


def split_events(events: list[Event]) -> tuple[Answer, Usage]:
    *news, end = events
    assert isinstance(end, Finished | Failed)
    outcome = end.reason if isinstance(end, Finished) else end.error.message
    deltas = [event for event in news if isinstance(event, Delta)]
    before = [event for event in news if not isinstance(event, Delta)]
    assert news == [*before, *deltas]
    counts = (end.usage.prompt_tokens, end.usage.completion_tokens)
    return Answer((*before, Delta.joined(deltas)), outcome, *counts), end.usage


def test_a_step_is_one_delta() -> None:
    """A client's disconnect is noticed between two Deltas."""
    with serving(GUESSING, habit=RIGID) as (engine, _):
        *news, end = engine.submit(Request(PROMPT, GREEDY))
        assert isinstance(end, Finished)
        assert len(news) == engine.stats().steps < end.usage.completion_tokens


def ask(
    config: EngineConfig, requests: list[Request], *, eos_bias: float = -100.0, habit: float = LOOSE
) -> tuple[list[Answer], list[Usage], int]:
    """Serves all at once: returns answers, usages and the number of steps. Blocks are checked after each step."""
    with serving(config, eos_bias=eos_bias, habit=habit) as (engine, runner):
        after_each_step(engine, engine._core.scheduler.check_integrity)  # its error would end every stream
        streams = [engine.submit(request) for request in requests]
        results = [split_events(list(stream)) for stream in streams]
        stats = engine.stats()
        assert stats.free_blocks == stats.num_blocks
        assert (stats.drafted_tokens, stats.accepted_tokens) == (
            sum(usage.drafted_tokens for _, usage in results),
            sum(usage.accepted_tokens for _, usage in results),
        )
        assert stats.completion_tokens == sum(answer.completion_tokens for answer, _ in results)
        assert stats.prompt_tokens == sum(answer.prompt_tokens for answer, _ in results)
        return [answer for answer, _ in results], [usage for _, usage in results], len(runner.batches)


def alone(config: EngineConfig, requests: list[Request], **options: float) -> list[Answer]:
    """Serves each request in an engine of its own without drafting and reuse."""
    plain = replace(config, max_draft=0, prefix_cache_n=0)
    return [ask(plain, [request], **options)[0][0] for request in requests]


SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.4, 1.0, 1.5]),
    top_k=st.sampled_from([0, 5, 40]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    typical_p=st.sampled_from([1.0, 0.8]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.3]),
    presence_penalty=st.sampled_from([0.0, 0.4]),
    repeat_last_n=st.sampled_from([64, 5]),
    dry_multiplier=st.sampled_from([0.0, 0.0, 0.8, 5.0]),
    dry_breakers=st.sampled_from([(), ("a",), ("bc", "\n")]),
    seed=st.integers(0, 50),
    max_tokens=st.integers(1, 40),
    stop=st.sampled_from([(), (), ("ab", "cd"), ("e",), ("aaa",), ("<end>",), ("a<end>", "<end>b", "<end><end><e")]),
    stop_token_ids=st.sampled_from([(), (), (25, 31)]),
    ignore_eos=st.booleans(),
    min_tokens=st.sampled_from([0, 0, 1]),
    logprobs=st.sampled_from([None, 0, 3]),
    logit_bias=st.sampled_from([(), ((20, 4.0), (21, 4.0)), ((EOS, 4.0),)]),
)
PROMPTS = st.builds(
    lambda part, times, rest: tuple((part * times + rest)[:60]),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 6),
    st.lists(st.integers(1, 40), max_size=3),
)
REQUESTS = st.builds(
    lambda prompt, sampling, scored, late: Request(
        prompt,
        replace(sampling, min_tokens=min(9, sampling.max_tokens or 0) if late else sampling.min_tokens),
        prompt_logprobs=scored,
    ),
    PROMPTS,
    SAMPLING,
    st.sampled_from([None, None, None, 1]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=5),
    windows=st.sampled_from([(0,), (0,), (0, 5), (7,), (0, 1, 12)]),
    num_blocks=st.sampled_from([60, 34]),
    habit=st.sampled_from([6.0, LOOSE, 12.0]),
    eos_bias=st.sampled_from([-100.0, 2.0]),
    max_draft=st.sampled_from([1, 3, 15]),
    max_batch_tokens=st.sampled_from([3, 8, 32]),
    max_prompt_logits=st.sampled_from([0, 2, 64]),
    max_seqs=st.integers(1, 4),
    block_size=st.sampled_from([3, 4, 8]),
    prefix_cache_n=st.sampled_from([0, 2]),
)
def test_drafting_changes_no_answer(
    requests: list[Request],
    windows: tuple[int, ...],
    num_blocks: int,
    habit: float,
    eos_bias: float,
    **changes: Any,
) -> None:
    """Requests of all kinds beside each other, with few blocks and with many."""
    groups = tuple(KvGroup(num_blocks, window) for window in windows)
    config = replace(CONFIG, kv_groups=groups, **changes)
    expected = alone(config, requests, eos_bias=eos_bias, habit=habit)
    assert ask(config, requests, eos_bias=eos_bias, habit=habit)[0] == expected


def test_the_comparison_covers_all_kinds_of_drafts() -> None:
    """The comparison above covers many draft tokens, accepted and rejected."""
    sampled = SamplingParams(temperature=1.0, max_tokens=60, ignore_eos=True)
    for sampling in (replace(GREEDY, max_tokens=60), sampled, replace(sampled, dry_multiplier=0.3)):
        requests = [Request(PROMPT[number:], replace(sampling, seed=number)) for number in range(4)]
        answers, usages, _ = ask(GUESSING, requests)
        assert answers == alone(GUESSING, requests)
        drafted, accepted = (
            sum(getattr(usage, name) for usage in usages) for name in ("drafted_tokens", "accepted_tokens")
        )
        assert 10 <= accepted <= drafted - 10


def test_preempted_with_drafts() -> None:
    requests = [Request(PROMPT[: 5 + number], replace(GREEDY, max_tokens=30)) for number in range(4)]
    config = replace(GUESSING, kv_groups=(KvGroup(16),), max_model_len=60)
    with serving(config, habit=LOOSE) as (engine, _):
        streams = [engine.submit(request) for request in requests]
        assert [split_events(list(stream))[0] for stream in streams] == alone(config, requests)
        assert engine.stats().preemptions > 0
        assert engine.stats().accepted_tokens > 0


# Counts


@pytest.mark.parametrize("windows", [(0,), (7,), (0, 5)])
def test_a_text_that_goes_round_takes_few_steps(windows: tuple[int, ...]) -> None:
    config = replace(GUESSING, kv_groups=tuple(KvGroup(60, window) for window in windows))
    request = Request(PROMPT, replace(GREEDY, max_tokens=100))
    [answer], [usage], steps = ask(config, [request], habit=RIGID)
    assert [answer] == alone(config, [request], habit=RIGID)
    assert steps == answer.completion_tokens - usage.accepted_tokens
    assert usage.accepted_tokens > 0.8 * usage.drafted_tokens
    assert steps < 100 / 2


def test_nothing_is_drafted_unless_asked_for() -> None:
    [answer], [usage], steps = ask(CONFIG, [Request(PROMPT, GREEDY)], habit=RIGID)
    assert (usage.drafted_tokens, usage.accepted_tokens) == (0, 0)
    assert steps == answer.completion_tokens == 40


def test_steps_have_few_logits() -> None:
    requests = [Request(PROMPT[number:], GREEDY) for number in range(3)]
    with serving(GUESSING, habit=RIGID) as (engine, runner):
        for stream in [engine.submit(request) for request in requests]:
            list(stream)
        # No step of a prompt returns logits of all its tokens.
        decodes = [batch for batch in runner.batches if len(batch.logits_indices) == len(batch.tokens)]
    assert {len(batch.tokens) for batch in decodes if len(batch.seq_lens) == 3} >= {3, MAX_DRAFT_BATCH}
    assert max(len(batch.tokens) for batch in decodes) == MAX_DRAFT_BATCH


# Ends among accepted draft tokens


def circle(length: int) -> tuple[list[int], str]:
    """The tokens and the text of a greedy answer that goes round."""
    [answer], _, _ = ask(CONFIG, [Request(PROMPT, replace(GREEDY, max_tokens=length))], habit=RIGID)
    deltas = [event for event in answer.events if isinstance(event, Delta)]
    return [token for delta in deltas for token in delta.tokens], "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("kind", ["max_tokens", "stop", "stop_token_ids"])
def test_an_end_among_accepted_draft_tokens(kind: str) -> None:
    """At any draft token; the tokens behind it are neither delivered, nor counted, nor cached."""
    tokens, text = circle(40)
    cut_short = 0
    for length in range(20, 32):
        if kind == "max_tokens":
            request = Request(PROMPT, replace(GREEDY, max_tokens=length))
        elif kind == "stop":
            request = Request(PROMPT, replace(GREEDY, stop=(text[:length],)))
        else:  # the prompt has repeated itself, so that the end itself is a draft token
            request = Request((*PROMPT, *tokens[:length]), replace(GREEDY, stop_token_ids=(tokens[length + 2],)))
        [answer], [usage], _ = ask(GUESSING, [request], habit=RIGID)
        assert [answer] == alone(GUESSING, [request], habit=RIGID)
        assert answer.end == ("length" if kind == "max_tokens" else "stop")
        cut_short += usage.accepted_tokens < usage.drafted_tokens
    assert (cut_short > 0) == (kind != "max_tokens")


def test_the_next_turn_finds_the_same_prefix_without_drafting() -> None:
    """Also after a stop string among accepted draft tokens."""
    _, text = circle(40)
    for sampling in (GREEDY, replace(GREEDY, stop=(text[:26],)), replace(GREEDY, temperature=1.0, seed=4)):
        found = []
        for config in (CONFIG, GUESSING):
            with serving(config, habit=RIGID if sampling.stop else LOOSE) as (engine, _):
                first = list(engine.submit(Request(PROMPT, sampling)))
                outcome = tuple(token for event in first if isinstance(event, Delta) for token in event.tokens)
                cached = engine.stats().cached_blocks
                second = list(engine.submit(Request((*PROMPT, *outcome, 60, 61), GREEDY)))
                found.append(
                    (split_events(first)[0], split_events(second)[0], cached, split_events(second)[1].cached_tokens)
                )
        assert found[0] == found[1]


# Cancelling and failing


def test_a_cancel_among_draft_tokens_commits_none() -> None:
    with serving(GUESSING, habit=RIGID) as (engine, runner):
        turnstile = Turnstile(runner)
        stream = engine.submit(Request(PROMPT, replace(GREEDY, max_tokens=None)))
        turnstile.wait()
        while len(runner.batches[-1].logits_indices) < 4:
            turnstile.let_through()
            turnstile.wait()
        stream.cancel()  # only the cancel flag ends the step
        answer, usage = split_events(list(stream))
        assert answer.end == "cancelled"
        assert answer.completion_tokens == len(runner.batches) - 1 + usage.accepted_tokens
        assert engine.stats().free_blocks == engine.stats().num_blocks
        turnstile.let_through(1000)
        assert (
            split_events(list(engine.submit(Request(PROMPT, GREEDY))))[0]
            == alone(CONFIG, [Request(PROMPT, GREEDY)], habit=RIGID)[0]
        )


class Spoilt(FakeRunner):
    """Has no logits behind positions that ``spoils`` names, or aborts steps that it names by their number."""

    def __init__(self, spoils: Callable[[int], bool], aborts: Callable[[int], bool]) -> None:
        super().__init__(block_size=CONFIG.block_size, habit=RIGID)
        self.spoils, self.aborts = spoils, aborts

    def logits(self, batch: Batch, cancel_flag: CancelFlag) -> torch.Tensor:
        if self.aborts(len(self.batches)):
            cancel_flag.set()
            self.batches.append(batch)
            return torch.zeros(len(batch.logits_indices), VOCAB)
        logits = super().logits(batch, cancel_flag)
        for row, flat in enumerate(batch.logits_indices):
            if self.spoils(batch.positions[flat]):
                logits[row, 3] = torch.nan
        return logits


def ask_spoilt(config: EngineConfig, spoils: Callable[[int], bool], aborts: Callable[[int], bool]) -> Answer:
    with closing(Engine(Spoilt(spoils, aborts), FakeTokenizer(), config)) as engine:  # type: ignore[arg-type]
        answer, usage = split_events(list(engine.submit(Request(PROMPT, GREEDY))))
        engine._core.scheduler.check_integrity()
        assert engine.stats().free_blocks == engine.stats().num_blocks
        assert (usage.accepted_tokens > 0) == (config.max_draft > 0)
        return answer


@pytest.mark.parametrize("position", range(35, 44))
def test_an_unusable_row_fails_when_it_is_reached(position: int) -> None:
    """All tokens before it are delivered, however far ahead it was computed."""
    answers = [ask_spoilt(config, lambda place: place == position, lambda step: False) for config in (CONFIG, GUESSING)]
    assert answers[0] == answers[1]
    assert "finite" in answers[0].end
    assert answers[0].completion_tokens == position - len(PROMPT) + 1


def test_drafts_of_a_cancelled_step_are_proposed_again() -> None:
    assert ask_spoilt(GUESSING, lambda place: False, lambda step: step % 3 == 1) == ask_spoilt(
        CONFIG, lambda place: False, lambda step: False
    )


def test_prompt_logprobs_are_the_same_without_drafting() -> None:
    requests = [Request(PROMPT[number:], GREEDY, prompt_logprobs=2) for number in range(3)]
    config = replace(GUESSING, max_batch_tokens=8, max_prompt_logits=3)
    answers, usages, _ = ask(config, requests, habit=RIGID)
    assert answers == alone(config, requests, habit=RIGID)
    assert all(isinstance(answer.events[0], PromptLogprobs) for answer in answers)
    assert sum(usage.accepted_tokens for usage in usages) > 0
