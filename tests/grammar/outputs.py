"""Answers under random grammars, checked by other programs: the counts of a drill."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mistralrs.errors import RequestError
from tests.grammar.random_grammars import Case
from tests.grammar.walks import compiled, generate

_ANSWERS_OF_ONE = 5


@dataclass
class Outcome:
    """The counts of one kind of grammar."""

    grammars: int = 0
    refused: int = 0
    warned: int = 0
    unfinished: int = 0
    finished: int = 0
    wrong: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def run_outputs(make: Callable[[random.Random], Case], count: int, *, seed: int) -> Outcome:
    """Generates until ``count`` answers are finished, at most five under one grammar."""
    rng = random.Random(seed)
    outcome = Outcome()
    while outcome.finished < count:
        case = make(rng)
        outcome.grammars += 1
        try:
            grammar = compiled(case.kind, case.text)
        except RequestError as error:
            outcome.refused += 1
            outcome.reasons.append(error.message)
            continue
        if grammar.warnings:  # served as another language than that of the other program, which the warning says
            outcome.warned += 1
            continue
        for _ in range(_ANSWERS_OF_ONE):
            try:
                answer = generate(grammar, rng)
            except RequestError:  # too expensive to go on with
                answer = None
            if answer is None:
                outcome.unfinished += 1
            else:
                outcome.finished += 1
                if not case.check(answer):
                    outcome.wrong.append(f"{case.text!r} gave {answer!r}")
    return outcome
