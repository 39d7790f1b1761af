"""A budget of thinking: the thought is closed when it is used up, and an answer depends on its request alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.admission import check_request
from mistralrs.engine.config import Request, SamplingParams, ThinkingBudget
from mistralrs.engine.events import Failed, Finished
from mistralrs.engine.thinking_limit import ThinkingLimit
from mistralrs.errors import RequestError
from mistralrs.grammar.grammar_text import GrammarText
from tests.engine.fakes import VOCAB, FakeTokenizer
from tests.engine.test_engine import collect, serving
from tests.engine.test_speculation import CONFIG, GUESSING, PROMPT, SAMPLING, alone, ask

A = ord("a")
BY_LETTER = {chr(A + token % 13): token for token in range(16, 29)}
SAMPLED = SamplingParams(temperature=1.5, max_tokens=30, ignore_eos=True)


def spelled(text: str) -> tuple[int, ...]:
    return tuple(BY_LETTER[letter] for letter in text)


def budget(tokens: int, *, is_open: bool = True, closing: str = "ibcdj") -> ThinkingBudget:
    return ThinkingBudget(tokens, open="abc", close="bcd", closing=spelled(closing), is_open=is_open)


def limit(of: ThinkingBudget) -> ThinkingLimit:
    return ThinkingLimit(of, FakeTokenizer().token_bytes)


def forced_after(state: ThinkingLimit, text: str) -> str:
    """Returns what is forced behind the text, taken."""
    for token in spelled(text):
        assert state.next_forced is None
        state.accept(token)
    taken = ""
    while (token := state.next_forced) is not None:
        state.accept(token)
        taken += FakeTokenizer().token_bytes(token).decode()
    return taken


@pytest.mark.parametrize(
    ("given", "text", "forced"),
    [
        (budget(3), "eee", "ibcdj"),
        (budget(3), "ee", ""),
        (budget(0), "", "ibcdj"),
        (budget(0, is_open=False), "eeeeee", ""),
        (budget(0, is_open=False), "eabc", "ibcdj"),
        (budget(2, is_open=False), "abcmm", "ibcdj"),
        (budget(4), "ebcdeeeeeee", ""),
        (budget(5), "ebcdfabcee", "ibcdj"),
    ],
)
def test_a_thought_is_closed_when_it_has_used_up_its_tokens(given: ThinkingBudget, text: str, forced: str) -> None:
    """Not before, not without one, and not behind it; two thoughts share the budget."""
    state = limit(given)
    assert forced_after(state, text) == forced
    if forced:
        assert forced_after(state, "eeeee") == ""


def test_a_character_is_finished_first() -> None:
    state = limit(budget(1))
    state.accept(1)  # the first half of a character
    assert state.next_forced is None
    state.accept(8)
    assert state.next_forced == spelled("i")[0]


def test_halves_alone_do_not_keep_a_thought_open() -> None:
    state = limit(budget(1))
    count = 0
    while state.next_forced is None:
        state.accept(1)
        count += 1
    assert count == 4


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_an_answer_thinks_so_long(tokens: int, logprobs: int | None) -> None:
    """Whether forced tokens have steps of their own, as log-probabilities ask for, or not."""
    given = budget(tokens, closing="mmmbcd")
    with serving() as (engine, _):
        for seed in range(5):
            request = Request(PROMPT, replace(SAMPLED, seed=seed, logprobs=logprobs), thinking=given)
            _, found, end = collect(engine.submit(request))
            free = collect(engine.submit(replace(request, thinking=None)))[1]
            assert len(found) == end.usage.completion_tokens == 30
            place = next(place for place in range(30) if tuple(found[place : place + 6]) == given.closing)
            assert tokens <= place <= tokens + 3
            assert found[:place] == free[:place]
        assert (engine.stats().forced_tokens == 0) is (logprobs is not None)


def test_the_forced_end_may_be_cut() -> None:
    with serving() as (engine, _):
        for max_tokens in range(1, 6):
            request = Request(PROMPT, replace(SAMPLED, max_tokens=max_tokens), thinking=budget(0))
            text, tokens, end = collect(engine.submit(request))
            assert (text, len(tokens)) == ("ibcdj"[:max_tokens], max_tokens)
            assert end.reason == "length"  # type: ignore[union-attr]


BUDGETS = st.builds(
    ThinkingBudget,
    tokens=st.integers(0, 20),
    open=st.sampled_from(["a", "ab", "abc"]),
    close=st.just("bc"),
    closing=st.sampled_from([spelled("bc"), spelled("kbcl")]),
    is_open=st.booleans(),
)
REQUESTS = st.builds(
    Request,
    st.builds(lambda ids, times: tuple(ids * times), st.lists(st.integers(16, 30), min_size=1, max_size=5), st.just(4)),
    SAMPLING.map(lambda sampling: replace(sampling, min_tokens=0)),
    thinking=BUDGETS,
    grammar=st.sampled_from([None, None, GrammarText("regex", "[a-m]{3,60}")]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=4), st.sampled_from([{}, {"max_batch_tokens": 5}, {"max_seqs": 1}]))
def test_neither_drafts_nor_others_change_an_answer(requests: list[Request], changes: dict[str, Any]) -> None:
    """With log-probabilities, stop strings and grammars too."""
    answers, _, _ = ask(replace(GUESSING, **changes), requests)
    assert answers == alone(CONFIG, requests)


def test_impossible_budgets_are_refused() -> None:
    good = Request(PROMPT, SAMPLED, thinking=budget(3))
    check_request(good, VOCAB, max_adapters=0)
    for thinking in (replace(budget(3), tokens=-1), replace(budget(3), closing=(VOCAB,))):
        with pytest.raises(RequestError, match="thinking"):
            check_request(replace(good, thinking=thinking), VOCAB, max_adapters=0)
    with pytest.raises(RequestError, match="thinking"):
        check_request(replace(good, pooling="mean"), VOCAB, max_adapters=0)


@pytest.mark.parametrize("tokens", [0, 2])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_thought_whose_end_would_end_the_answer_too_early_fails_by_name(tokens: int, logprobs: int | None) -> None:
    closing = budget(tokens)
    letters = tuple((token, -99.0) for token in range(16))
    sampling = replace(
        SAMPLED, min_tokens=20, logprobs=logprobs, logit_bias=letters, stop_token_ids=closing.closing[:1]
    )
    request = Request(PROMPT, sampling, thinking=closing)
    with serving() as (engine, _):
        _, _, end = collect(engine.submit(request))
        assert isinstance(end, Failed)
        assert isinstance(end.error, RequestError)
        assert (end.error.code, end.error.param) == ("no_token", "min_tokens")
        for remedied in ({"min_tokens": 0}, {"stop_token_ids": ()}):
            mended = replace(request, sampling=replace(sampling, **remedied))  # type: ignore[arg-type]
            assert isinstance(collect(engine.submit(mended))[2], Finished)
