"""A short round of the drill over grammars; ``make soak`` makes the long one."""

from __future__ import annotations

from tests.soak.grammar_outputs import drill, report


def test_a_short_round_finds_nothing() -> None:
    outcomes, hostile = drill(5, 10, seed=8)
    text = report(outcomes, hostile, seed=8)
    assert text.endswith("Nothing.\n")
    assert all(f"| {kind} |" in text for kind in outcomes)
    outcomes["regex"].wrong.append("'a' gave b'b'")
    assert text != report(outcomes, hostile, seed=8)
