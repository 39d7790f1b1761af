"""Prompt lookup in texts that ended before: what is found, what is kept, and that salts stay apart."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.config import Request
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Usage
from mistralrs.engine.ngram_proposer import NgramProposer
from mistralrs.engine.recent_texts import MAX_TEXTS, RecentTexts, Text
from tests.engine.test_engine import serving
from tests.engine.test_speculation import CONFIG, GREEDY, alone, split_events

GUESSING = replace(CONFIG, max_draft=7, prefix_cache_n=0)


def ended(recent: RecentTexts, tokens: list[int], salt: str = "") -> None:
    proposer = NgramProposer(recent, salt)
    proposer.propose(tokens[:2], 3)
    proposer.ended(tokens)


def naive(texts: list[list[int]], tokens: list[int]) -> tuple[int, list[int]]:
    """The most last tokens, three at least, that stand at the last place of their three in a text, and what follows."""
    best: tuple[int, list[int]] = (0, [])
    for text in reversed(texts):
        places = [p for p in range(3, len(text)) if text[p - 3 : p] == tokens[-3:]]
        if places and len(tokens) >= 3:
            place, equal = places[-1], 3
            while equal < min(place, len(tokens)) and text[place - 1 - equal] == tokens[-1 - equal]:
                equal += 1
            if equal > best[0]:
                best = equal, text[place:]
    return best


TOKENS = st.lists(st.integers(0, 2), min_size=3, max_size=30)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TOKENS, max_size=4), tokens=TOKENS)
def test_the_longest_match_is_found(texts: list[list[int]], tokens: list[int]) -> None:
    recent = RecentTexts()
    kept: list[list[int]] = []
    for text in texts:
        ended(recent, list(text))
        kept = [other for other in kept if text[: len(other)] != other] + [text]
    assert recent.num_tokens == sum(map(len, kept))
    match = recent.find("", tokens, length=3)
    length, following = naive(kept, tokens)
    assert (0 if match is None else match.length) == length
    assert match is None or match.text.tokens[match.place :] == following


def test_a_longer_match_of_another_text_comes_before_the_own() -> None:
    """It is followed, without a search, until the text goes another way."""
    recent = RecentTexts()
    ended(recent, [1, 2, 3, 4, 5, 6, 7, 8])
    proposer, tokens = NgramProposer(recent), [3, 4, 5, 99, 1, 2, 3, 4, 5]
    assert proposer.propose(tokens, 3) == (6, 7, 8)
    assert proposer.propose([*tokens, 6], 3) == (7, 8)
    assert proposer.propose([*tokens, 6, 50], 3) == (8,)  # 50 may stand for 7
    assert proposer.propose([*tokens, 6, 50, 51, 52, 53], 3) == ()
    assert NgramProposer(recent, "other").propose(tokens, 3) == (99, 1, 2)
    assert NgramProposer().propose(tokens, 3) == (99, 1, 2)


def test_texts_are_bounded() -> None:
    recent = RecentTexts(max_tokens=100)
    for number in range(9):
        ended(recent, [number] * 20)
        assert recent.num_tokens <= 100
    assert recent.find("", [3, 3, 3], length=3) is None
    assert recent.find("", [8, 8, 8], length=3) is not None
    ended(recent, list(range(101)))
    assert recent.num_tokens == 100
    many = RecentTexts()
    for number in range(MAX_TEXTS + 9):
        many.add("", Text([number] * 5, {}))
    assert many.num_tokens == 5 * MAX_TEXTS


def test_what_was_never_searched_is_not_kept() -> None:
    recent = RecentTexts()
    NgramProposer(recent).ended(list(range(50)))
    assert recent.num_tokens == 0


def usage_of(engine: Engine, request: Request) -> Usage:
    answer, usage = split_events(list(engine.submit(request)))
    assert [answer] == alone(CONFIG, [request], habit=0.0)
    return usage


def test_a_second_request_finds_the_answer_of_the_first() -> None:
    """Its salt is that of its key, and another key's finds nothing."""
    prompt = (20, 45, 11, 33, 70, 71)
    with serving(GUESSING) as (engine, _):
        first = usage_of(engine, Request(prompt, GREEDY, cache_salt="key"))
        other = usage_of(engine, Request(prompt, GREEDY, cache_salt="other"))
        again = usage_of(engine, Request(prompt, GREEDY, cache_salt="key"))
    assert first.accepted_tokens == other.accepted_tokens < 10
    assert again.accepted_tokens > 30
