"""DRY against llama.cpp, against its definition read literally, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.sampling.dry_penalty import MAX_PENALTY, Dry
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.text.tokenizer import Tokenizer
from tests.tiny import write_tiny

CASES = json.loads((Path(__file__).parent / "golden" / "samplers.json").read_text(encoding="utf-8"))["dry"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    with GgufFile.open(write_tiny(tmp_path_factory.mktemp("dry") / "tiny.gguf").path) as file:
        return Tokenizer.from_gguf(file.metadata)


def letter(token: int) -> bytes:
    return bytes([ord("a") + token])


def penalties(tokens: Sequence[int], **changes: Any) -> dict[int, float]:
    """With tokens that spell letters, and no breakers unless they are given."""
    return Dry(SamplingParams(**{"dry_multiplier": 1.0, "dry_breakers": (), **changes}), letter).penalties(tokens)


def test_llama_cpp_penalizes_the_same(tokenizer: Tokenizer) -> None:
    penalized = 0
    for case in CASES:
        settings: dict[str, Any] = {"dry_multiplier": 1.0, **case["params"]}
        if "dry_breakers" in settings:
            settings["dry_breakers"] = tuple(settings["dry_breakers"])
        params = SamplingParams(**settings)
        found = Dry(params, tokenizer.token_bytes).penalties(case["tokens"])
        assert found == pytest.approx(dict(case["penalties"]), rel=1e-5), settings
        penalized += len(found)
    assert penalized > 60


def plain_penalties(text: str, *, allowed: int, last_n: int, breakers: list[str]) -> dict[int, float]:
    """Every earlier place is compared with the end of the text, letter by letter; the base is 2."""
    text = text[len(text) - min(last_n, len(text)) :]
    unbroken = len(text) - max((text.rfind(b) + len(b) for b in breakers if b in text), default=0)
    found: dict[int, float] = {}
    for place in range(len(text) - 1):
        length = 0
        while length < min(unbroken, place + 1) and text[place - length] == text[len(text) - 1 - length]:
            length += 1
        following = text[place + 1]
        if length >= allowed and not any(b in following for b in breakers):
            token = ord(following) - ord("a")
            found[token] = max(found.get(token, 0.0), 2.0 ** (length - allowed))
    return found


@given(
    text=st.text("abc", max_size=80) | st.text("ab", max_size=80),
    allowed=st.integers(1, 4),
    last_n=st.integers(0, 90),
    breakers=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_the_definition_read_literally(text: str, allowed: int, last_n: int, breakers: list[str]) -> None:
    found = penalties(
        [ord(character) - ord("a") for character in text],
        dry_base=2.0,
        dry_allowed_length=allowed,
        dry_last_n=last_n,
        dry_breakers=tuple(breakers),
    )
    assert found == plain_penalties(text, allowed=allowed, last_n=last_n, breakers=breakers)


def test_breakers_far_back_and_across_tokens_are_found() -> None:
    """A long breaker that contains a short one reaches further, wherever the search for breakers begins."""
    for before, after in ((0, 3), (1, 20), (7, 27), (7, 28), (7, 29), (7, 30), (7, 31), (7, 32), (300, 100)):
        once = [4] * before + [5, 6, 7, 0] + list(range(8, 8 + after))
        expected = {once[0]: pytest.approx(1.75 ** (after - 2))}
        assert penalties(once * 2, dry_breakers=("fgha",)) == expected
        assert penalties(once * 2, dry_breakers=("g", "gha")) == expected
        assert penalties(once * 2)[once[0]] > 1.75**after


def test_nothing_overflows() -> None:
    for base, multiplier in ((1.75, 1e300), (1e300, 1.0), (10.0, 1.0), (1.0000001, 5.0)):
        [(token, penalty)] = penalties([0] * 5000, dry_base=base, dry_multiplier=multiplier).items()
        assert token == 0
        assert 1 <= penalty <= MAX_PENALTY


def test_the_cost_is_linear() -> None:
    """Counted in comparisons of tokens, for the texts that are worst."""
    comparisons = 0

    class Counted(int):
        def __eq__(self, other: object) -> bool:
            nonlocal comparisons
            comparisons += 1
            return int(self) == other

        __hash__ = int.__hash__

    for pattern in ([0], [0, 1], [0] * 30 + [1], [0, 0, 1, 0, 0, 2], list(range(20))):
        tokens = [Counted(token) for token in (pattern * 4000)[:4000]]
        comparisons = 0
        assert penalties(tokens)
        assert comparisons <= 10 * len(tokens)
