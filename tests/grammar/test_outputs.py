"""Answers under random grammars pass the checks of other programs; ``tests.soak.grammar_outputs`` makes more."""

from __future__ import annotations

import json

import pytest

from tests.grammar.ends import run_ends
from tests.grammar.outputs import run_outputs
from tests.grammar.random_grammars import CASES, Case

COUNT = 40
ENDS = 30


@pytest.mark.parametrize("kind", sorted(CASES))
def test_no_finished_answer_breaks_its_grammar(kind: str) -> None:
    outcome = run_outputs(CASES[kind], COUNT, seed=3)
    assert outcome.wrong == []
    assert outcome.finished >= COUNT


@pytest.mark.parametrize("kind", sorted(CASES))
def test_an_answer_that_is_cut_never_says_stop(kind: str) -> None:
    ends = run_ends(CASES[kind], ENDS, seed=3)
    assert ends.wrong == []
    assert min(ends.stopped, ends.cut) > 0


def test_a_number_that_nothing_continues_is_not_cut() -> None:
    """Its mask alone shows that; it has as many tokens as it may."""
    schema = json.dumps({"type": "number", "exclusiveMinimum": -20, "maximum": 2, "multipleOf": 3})
    ends = run_ends(lambda _: Case("json_schema", schema, is_multiple_of_three), 60, seed=5)
    assert ends.wrong == []
    assert ends.stopped > 0


def is_multiple_of_three(answer: bytes) -> bool:
    return int(float(answer)) % 3 == 0
