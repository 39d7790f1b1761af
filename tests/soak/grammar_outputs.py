"""Generates answers under random grammars, checks each with a program that nobody here wrote, and tries hostile ones.

    python -m tests.soak.grammar_outputs --count 500 --hostile 1000 --report FILE

A finished answer that does not parse, an answer of an engine whose end has the wrong reason, or a hostile grammar that
ends in anything but a named error or masks, makes the exit code 1.
"""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.grammar.ends import Ends, run_ends
from tests.grammar.hostile_grammars import HostileOutcome, run_hostile
from tests.grammar.outputs import Outcome, run_outputs
from tests.grammar.random_grammars import CASES

CHECKERS: dict[str, str | None] = {
    "regex": "regex",
    "json_schema": "jsonschema",
    "gbnf": "lark",
    "lark": "lark",
    "yacc": "ply",
    "choice": None,
    "structural_tag": "jsonschema",
}
"""The package that checks a kind; None: Python's comparison does."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The outcomes of one run, by the kinds of grammars."""

    outcomes: dict[str, Outcome]
    ends: dict[str, Ends]
    hostile: HostileOutcome

    @property
    def wrong(self) -> list[str]:
        """Returns a line for each answer that is not as it should be."""
        found = {kind: [*self.outcomes[kind].wrong, *self.ends[kind].wrong] for kind in self.outcomes}
        return [f"- {kind}: {each}" for kind, lines in found.items() for each in lines]


def drill(count: int, hostile: int, *, seed: int) -> Findings:
    """``count`` finished answers and ``count`` ends for each kind of grammar, and ``hostile`` hostile grammars."""
    outcomes = {kind: run_outputs(make, count, seed=seed) for kind, make in CASES.items()}
    ends = {kind: run_ends(make, count, seed=seed) for kind, make in CASES.items()}
    return Findings(outcomes, ends, run_hostile(hostile, seed=seed))


def report(findings: Findings, *, seed: int) -> str:
    """Returns the findings as Markdown."""
    hostile = findings.hostile
    rows = [
        f"| {kind} | {each.grammars} | {each.refused} | {each.warned} | {each.unfinished} | {each.finished} "
        f"| {_checker(kind)} | {len(each.wrong)} |"
        for kind, each in findings.outcomes.items()
    ]
    end_rows = [
        f"| {kind} | {each.stopped} | {each.cut} | {each.failed} | {len(each.wrong)} |"
        for kind, each in findings.ends.items()
    ]
    kinds = sorted({kind for kind, _ in hostile.endings})
    endings = ("refused", "usable", "failed by name")
    hostile_rows = [
        f"| {kind} | {' | '.join(str(hostile.endings[kind, ending]) for ending in endings)} |" for kind in kinds
    ]
    lines = [
        "# Answers under grammars",
        "",
        f"Random grammars from seed {seed}, answers by random walks over the masks of a small vocabulary (llguidance",
        f"{version('llguidance')}). Grammars with a warning are served as another language and are not counted.",
        "",
        "| kind | grammars | refused | warned | unfinished answers | finished answers | checked by | wrong |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "## Reasons of ends",
        "",
        "An engine's answers under such grammars, with max_tokens from 1 to 80. One that stopped is whole by the same",
        "check; one that was cut has max_tokens tokens, and more could follow.",
        "",
        "| kind | stop | length | failed by name | wrong |",
        "| --- | --- | --- | --- | --- |",
        *end_rows,
        "",
        "## Hostile grammars",
        "",
        "| kind | refused | usable | failed by name |",
        "| --- | --- | --- | --- |",
        *hostile_rows,
        "",
        f"The slowest compilation took {hostile.slowest_compile_s:.2f} s (`{hostile.slowest}`), the slowest mask "
        f"{hostile.slowest_mask_s:.2f} s. The process had at most "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB.",
        "",
        "## Not as it should be",
        "",
        *(findings.wrong or ["Nothing."]),
    ]
    return "\n".join(lines) + "\n"


def _checker(kind: str) -> str:
    package = CHECKERS[kind]
    return "comparison" if package is None else f"{package} {version(package)}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks answers under random grammars and reports what came of it.")
    parser.add_argument("--count", type=int, default=500, help="finished answers for each kind of grammar")
    parser.add_argument("--hostile", type=int, default=1000, help="hostile grammars")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args()
    findings = drill(options.count, options.hostile, seed=options.seed)
    options.report.write_text(report(findings, seed=options.seed))
    finished = sum(each.finished for each in findings.outcomes.values())
    ended = sum(each.answers for each in findings.ends.values())
    print(f"{finished} answers and {ended} ends, {len(findings.wrong)} wrong: {options.report}")
    return 1 if findings.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
