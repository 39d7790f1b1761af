"""A short round of the drill over grammars; ``make soak`` makes the long one."""

from __future__ import annotations

from tests.soak.grammar_outputs import drill, report


def test_a_short_round_finds_nothing() -> None:
    findings = drill(5, 10, seed=8)
    text = report(findings, seed=8)
    assert text.endswith("Nothing.\n")
    assert all(f"| {kind} |" in text for kind in findings.outcomes)
    assert all(each.answers >= 5 for each in findings.ends.values())
    findings.outcomes["regex"].wrong.append("'a' gave b'b'")
    findings.ends["yacc"].wrong.append("'a' gave b'b', and the reason stop, but it is not whole")
    assert report(findings, seed=8).endswith("but it is not whole\n")
    assert len(findings.wrong) == 2
