"""Copying a text with changes: where drafts go on behind a word that was replaced, added or left out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.engine.copy_source import COPIED_FOR_CHANGED, CopySource, WordPart, word_part
from mistralrs.engine.ngram_proposer import NgramProposer

TEXT = "The boats go out befor sun rise , and they come back at noon . The men re pair teh nets"
WORDS = TEXT.split()
SPLIT = {"rise", "pair"}
IDS = {word: number for number, word in enumerate(dict.fromkeys(WORDS), 100)}


def ids(text: str) -> list[int]:
    """A token for each word; those of ``SPLIT`` go on with the word before them."""
    return [IDS.setdefault(word, 100 + len(IDS)) for word in text.split()]


def part(token: int) -> WordPart:
    word = next(word for word, number in IDS.items() if number == token)
    return WordPart.NONE if not word[0].isalnum() else WordPart.REST if word in SPLIT else WordPart.START


def after(answer: str, count: int = 3) -> list[str]:
    """The words that are proposed after so much of an edit of the text, which is seen a token at a time."""
    proposer, prompt = NgramProposer(part=part), [*ids(TEXT), 1, 2, 3]
    proposed: tuple[int, ...] = ()
    for length in range(len(ids(answer)) + 1):
        proposed = proposer.propose([*prompt, *ids(answer)[:length]], count)
    return [next(word for word, number in IDS.items() if number == token) for token in proposed]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The boats go out before", "sun rise ,"),  # another word
        ("The boats go out befor sunrise", ", and they"),  # for two tokens that are one word
        ("The boats go out befor sun rise and", "they come back"),  # a mark is left out
        ("The boats go out befor sun rise ; and", "they come back"),
        ("The boats go out befor sun rise ;", "and they come"),  # another mark
        ("The boats go out ,", "befor sun rise"),  # a mark is added
        (f"{' '.join(WORDS[:12])} now , at", "noon . The"),  # two tokens are added
        ("The boats go out , they come back", "at noon ."),  # much is left out
        ("The boats go out now then later soon at noon", ". The men"),  # an n-gram elsewhere
    ],
)
def test_a_draft_goes_on_behind_a_change(answer: str, expected: str) -> None:
    assert after(answer) == expected.split()


def test_a_place_is_lost_after_too_much_of_a_change() -> None:
    """Other words of a text that was hardly copied show that it is none."""
    copied = "The boats go out befor sun"
    assert after(f"{copied} a b") != []
    assert after(f"{copied} a b c d e") == []
    assert after("The boats a b") == []
    assert len(ids(copied)) // COPIED_FOR_CHANGED == 3


def test_a_place_that_was_copied_is_taken_again_where_another_is_wrong() -> None:
    """Three equal tokens elsewhere outnumber the one behind words that were left out, and may yet be another place."""
    prompt = [*range(10, 30), 0, *(15, 16, 18), 5, 6, 7, 0]
    proposer, answer = NgramProposer(), [*range(10, 17)]
    assert proposer.propose([*prompt, *answer], 3) == (17, 18, 19)
    assert proposer.propose([*prompt, *answer, 18], 3) == (5, 6, 7)
    assert proposer.propose([*prompt, *answer, 18, 19], 3) == (20, 21, 22)
    assert proposer.propose([*prompt, *answer, 18, 19, 20], 3) == (21, 22, 23)


def test_a_place_elsewhere_is_kept_where_it_is_right() -> None:
    prompt = [*range(10, 30), 0, *(15, 16, 18), 5, 6, 7, 0]
    proposer, answer = NgramProposer(), [*range(10, 17)]
    for count in range(len(answer)):
        proposer.propose([*prompt, *answer[: count + 1]], 3)
    assert proposer.propose([*prompt, *answer, 18], 3) == (5, 6, 7)
    assert proposer.propose([*prompt, *answer, 18, 5], 2) == (6, 7)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (b" word", WordPart.START),
        (b"word", WordPart.REST),
        (b"\n  word", WordPart.START),
        (b",", WordPart.NONE),
        (b" (", WordPart.NONE),
        (b"\n", WordPart.NONE),
        (b"", WordPart.NONE),
        (" größe".encode(), WordPart.START),
        ("ß".encode(), WordPart.REST),
        ("ß".encode()[:1], WordPart.REST),  # half of a character
        (b"\xe2\x80", WordPart.REST),
        ("好".encode(), WordPart.REST),
    ],
)
def test_parts_of_words(spelling: bytes, expected: WordPart) -> None:
    assert word_part(spelling) is expected


TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(text=TOKENS, place=st.integers(0, 39), copied=st.integers(0, 60), pieces=st.lists(TOKENS, max_size=6))
def test_a_place_stays_in_its_text(text: list[int], place: int, copied: int, pieces: list[list[int]]) -> None:
    """Whatever comes, in whatever pieces: drafts are tokens of the text, and pieces give the same as single tokens."""
    parts = list(WordPart)
    for is_own in (False, True):
        tokens = list(text)
        whole, single = (
            CopySource(None if is_own else text, min(place, len(text) - 1), length=0, copied=copied) for _ in range(2)
        )
        for piece in pieces:
            start = len(tokens)
            tokens += piece
            known = whole.follow(tokens, start, lambda token: parts[token % 3])
            each = [
                single.follow(tokens[: end + 1], end, lambda token: parts[token % 3])
                for end in range(start, len(tokens))
            ]
            assert known == all(each)
            if not known:
                break
            assert (whole.place, whole.length, whole.copied) == (single.place, single.length, single.copied)
            draft = whole.draft(tokens, 4)
            assert 0 < len(draft) <= 4
            source = tokens if is_own else text
            assert draft[: len(source) - whole.place] == tuple(source[whole.place : whole.place + 4])
