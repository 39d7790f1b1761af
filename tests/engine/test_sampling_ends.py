"""Requests' parameters about tokens: which end the answer, how early, and DRY's breakers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Delta, Failed, Finished, Stream
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import EOS, FakeRunner, FakeTokenizer

CONFIG = EngineConfig(kv_groups=(KvGroup(60),), max_model_len=120, max_seqs=6, max_batch_tokens=32, block_size=4)
SAMPLED = SamplingParams(temperature=1.5, top_k=30, max_tokens=24)
PROMPT = tuple(range(20, 45))
LETTERS = tuple((token, -99.0) for token in range(1, 16))
"""A bias against halves of characters."""


@contextmanager
def serving(*, eos_bias: float = -100.0) -> Iterator[Engine]:
    runner = FakeRunner(block_size=CONFIG.block_size, eos_bias=eos_bias)
    with closing(Engine(runner, FakeTokenizer(), CONFIG)) as engine:  # type: ignore[arg-type]
        yield engine
        engine._core.scheduler.check_integrity()


def answer(stream: Stream) -> tuple[str, list[int], str, int]:
    """Text, tokens, reason and the number of completion tokens."""
    *news, end = stream
    assert isinstance(end, Finished), end
    deltas = [event for event in news if isinstance(event, Delta)]
    text = "".join(delta.text for delta in deltas)
    return text, [token for delta in deltas for token in delta.tokens], end.reason, end.usage.completion_tokens


def test_a_stop_token_ends_the_answer_and_has_no_text() -> None:
    with serving() as engine:
        for seed in range(6):
            sampling = replace(SAMPLED, seed=seed, logit_bias=LETTERS)
            text, tokens, reason, _ = answer(engine.submit(Request(PROMPT, sampling)))
            assert reason == "length"
            for stop in {tokens[0], tokens[5], tokens[-1]}:
                place = tokens.index(stop)
                never = tuple(set(range(80, 96)) - set(tokens))
                stopping = replace(sampling, stop_token_ids=(*never, stop))
                before, drawn, reason, count = answer(engine.submit(Request(PROMPT, stopping)))
                assert (before, drawn, reason) == (text[:place], tokens[:place], "stop")
                assert count == place + 1


def test_stop_tokens_end_an_answer_that_ignores_the_end_of_the_text() -> None:
    sampling = replace(SAMPLED, ignore_eos=True, logit_bias=((EOS, 200.0),))
    with serving() as engine:
        assert answer(engine.submit(Request(PROMPT, sampling)))[1:3] == ([EOS] * 24, "length")
        stopping = replace(sampling, stop_token_ids=(EOS,))
        assert answer(engine.submit(Request(PROMPT, stopping)))[1:] == ([], "stop", 1)


def test_a_stop_string_may_spell_control_tokens() -> None:
    """Between letters, and as the token that ends the answer."""
    sampling = replace(SAMPLED, ignore_eos=True, logit_bias=LETTERS, logprobs=0)
    ends = 0
    with serving(eos_bias=2.0) as engine:
        for seed in range(8):
            sampling = replace(sampling, seed=seed)
            text, tokens, reason, _ = answer(engine.submit(Request(PROMPT, sampling)))
            assert reason == "length"
            assert len(text) == len([token for token in tokens if token != EOS])
            if EOS not in tokens[1:-1]:
                continue
            ends += 1
            place = tokens.index(EOS, 1)
            letters = [FakeTokenizer().token_text(token) for token in tokens]
            for first, last in ((place, place + 1), (place - 1, place + 1), (place, place + 2), (place - 1, place + 2)):
                stopping = replace(sampling, stop=("never<end>", "".join(letters[first:last])))
                before, drawn, reason, count = answer(engine.submit(Request(PROMPT, stopping)))
                found = next(end for end in range(len(letters) + 1) if stopping.stop[1] in "".join(letters[:end]))
                assert (reason, count, drawn) == ("stop", found, tokens[:found])
                assert before == "".join(letters[: found - (last - first)]).replace("<end>", "")
            stopping = replace(sampling, ignore_eos=False, stop=(letters[place - 1] + "<end>",))
            before, drawn, reason, count = answer(engine.submit(Request(PROMPT, stopping)))
            if tokens[0] != EOS:
                assert (before, drawn, reason) == ("".join(letters[: place - 1]), tokens[:place], "stop")
                assert count == place + 1
    assert ends >= 4


@pytest.mark.parametrize("min_tokens", [0, 1, 7, 24])
@pytest.mark.parametrize("samplers", [SAMPLED.samplers, ("top_k", "temperature")])
def test_nothing_ends_an_answer_before_min_tokens(min_tokens: int, samplers: tuple[str, ...]) -> None:
    """However likely the end is. The first end after that ends the answer at once."""
    for stop, ignore_eos in (((), False), ((40, 41), False), ((40,), True)):
        ends = {*stop, *(() if ignore_eos else (EOS,))}
        sampling = replace(SAMPLED, min_tokens=min_tokens, samplers=samplers, stop_token_ids=stop)
        sampling = replace(sampling, ignore_eos=ignore_eos, logit_bias=tuple((end, 200.0) for end in ends))
        with serving() as engine:
            _, tokens, reason, count = answer(engine.submit(Request(PROMPT, sampling)))
        assert len(tokens) == min_tokens
        assert not ends & set(tokens)
        assert (reason, count) == (("stop", min_tokens + 1) if min_tokens < 24 else ("length", 24))


def test_min_tokens_changes_nothing_else() -> None:
    """Answers in which no end was likely, and the log-probabilities, stay as they are."""
    sampling = replace(SAMPLED, logprobs=2)
    with serving() as engine:
        plain = [event for event in engine.submit(Request(PROMPT, sampling)) if isinstance(event, Delta)]
        later = replace(sampling, min_tokens=20)
        assert [event for event in engine.submit(Request(PROMPT, later)) if isinstance(event, Delta)] == plain


def test_a_row_of_which_only_ends_are_left_fails() -> None:
    everything = tuple(range(96))
    with serving() as engine:
        *_, end = engine.submit(Request(PROMPT, replace(SAMPLED, min_tokens=1, stop_token_ids=everything)))
        assert isinstance(end, Failed)
        assert "no token may follow" in end.error.message


def test_dry_breakers_are_matched_against_token_bytes() -> None:
    """Greedy, with a model that likes one token best: DRY forbids a third in a row, unless it is a breaker."""
    token = 50
    letter = FakeTokenizer().token_bytes(token).decode()
    greedy = SamplingParams(temperature=0.0, max_tokens=12, logit_bias=((token, 30.0),), dry_multiplier=50.0)
    sampled = replace(greedy, dry_breakers=("<end>",))
    with serving() as engine:
        free = answer(engine.submit(Request(PROMPT, replace(greedy, dry_multiplier=0.0))))[1]
        assert free == [token] * 12
        repeating = answer(engine.submit(Request(PROMPT, sampled)))[1]
        assert 0 < repeating.count(token) < 12
        broken = answer(engine.submit(Request(PROMPT, replace(greedy, dry_breakers=(letter,)))))[1]
        assert broken == free
        control = replace(greedy, dry_breakers=("<end>",), logit_bias=((EOS, 200.0),), ignore_eos=True)
        assert answer(engine.submit(Request(PROMPT, control)))[1] == [EOS] * 12  # a control token by its name


def test_requests_with_one_cache_salt_share_their_prompt() -> None:
    with serving() as engine:
        answers = []
        for cache_salt, reuse, cached in (
            ("a", True, 0),
            ("a", True, 24),
            ("b", True, 0),
            ("b", True, 24),
            ("b", False, 0),
        ):
            request = Request(PROMPT, SAMPLED, cache_salt=cache_salt, reuse=reuse)
            *news, end = engine.submit(request)
            assert isinstance(end, Finished)
            assert end.usage.cached_tokens == cached
            answers.append(news)
        assert all(news == answers[0] for news in answers)
