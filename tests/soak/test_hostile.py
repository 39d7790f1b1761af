"""A few of the hostile requests, and the machinery that sends them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.hostile import Outcome, report, run
from tests.soak.hostile_requests import KINDS, attack


def test_an_attack_is_named_by_its_number() -> None:
    numbers = range(3 * len(KINDS))
    assert [attack(number, 1) for number in numbers] == [attack(number, 1) for number in numbers]
    assert len({attack(number, 1).kind for number in numbers}) >= len(KINDS) - 2
    assert sum(attack(number, 1) != attack(number, 2) for number in numbers) > len(KINDS)


@pytest.mark.native
@pytest.mark.slow
def test_a_server_under_attack(tiny_llama: Path) -> None:
    outcomes, wrong, peak = run(tiny_llama, range(40), seed=1)
    assert wrong == []
    assert sorted(each.number for each in outcomes) == list(range(40))
    assert sum(each.result.startswith("4") for each in outcomes) > 13  # most are told what is wrong with them
    assert peak < 2 << 30


def test_what_is_unsound_is_reported() -> None:
    outcomes = [Outcome(0, "damaged request", "400", 0.1), Outcome(1, "deep JSON", "hang", 60.0)]
    assert [each.is_sound for each in outcomes] == [True, False]
    results = ["200", "404", "499", "closed", "left", "500", "503", "garbage"]
    assert [Outcome(0, "", result, 0).is_sound for result in results] == [True] * 5 + [False] * 3
    text = report(outcomes, ["number 1, deep JSON: hang"], seed=1, peak_bytes=2**20, model="tiny")
    assert "- number 1, deep JSON: hang" in text
    assert "| damaged request | 1 x 400 |" in text
