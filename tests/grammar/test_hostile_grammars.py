"""Hostile grammars end in a named error or in a constraint that gives masks; the soak drill makes more."""

from __future__ import annotations

import faulthandler
import random

import pytest

from tests.grammar.hostile_grammars import run_hostile
from tests.grammar.walks import TIMEOUT_S, compiled, generate

COUNT = 200


def test_hostile_grammars_end_by_name_or_are_usable() -> None:
    faulthandler.dump_traceback_later(10 * TIMEOUT_S, exit=True)  # the library cannot be interrupted
    try:
        outcome = run_hostile(COUNT, seed=1)
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert sum(outcome.endings.values()) == COUNT
    endings = {ending for _, ending in outcome.endings}
    assert {"refused", "usable"} <= endings <= {"refused", "usable", "failed by name"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("lark", 'start: "a" start'),
        ("lark", "start: A A\nA: /x+/"),
        ("gbnf", 'root ::= "a" root'),
        ("yacc", "%%\ns: '/x+/' '/x+/';"),
        (
            "json_schema",
            '{"items": {"$ref": "#"}, "minItems": 1, "type": "array", "x-guidance": {"whitespace_flexible": false}}',
        ),
        ("lark", 'start: %json {"items": {"$ref": "#"}, "minItems": 1, "type": "array"}'),
    ],
)
def test_forced_text_without_an_end_does_not_hang(kind: str, text: str) -> None:
    assert generate(compiled(kind, text), random.Random(1), max_tokens=40) is None
