"""Generates answers under random grammars, checks each with a program that nobody here wrote, and tries hostile ones.

    python -m tests.soak.grammar_outputs --count 500 --hostile 1000 --report FILE

A finished answer that does not parse, or a hostile grammar that ends in anything but a named error or masks, makes the
exit code 1.
"""

from __future__ import annotations

import argparse
import resource
import sys
from importlib.metadata import version
from pathlib import Path

from tests.grammar.hostile_grammars import HostileOutcome, run_hostile
from tests.grammar.outputs import Outcome, run_outputs
from tests.grammar.random_grammars import CASES

CHECKERS = {
    "regex": "regex",
    "json_schema": "jsonschema",
    "gbnf": "lark",
    "lark": "lark",
    "yacc": "ply",
}


def drill(count: int, hostile: int, *, seed: int) -> tuple[dict[str, Outcome], HostileOutcome]:
    """``count`` finished answers for each kind of grammar, and ``hostile`` hostile grammars."""
    outcomes = {kind: run_outputs(make, count, seed=seed) for kind, make in CASES.items()}
    return outcomes, run_hostile(hostile, seed=seed)


def report(outcomes: dict[str, Outcome], hostile: HostileOutcome, *, seed: int) -> str:
    """Returns the findings as Markdown."""
    wrong = [f"- {kind}: {each}" for kind, outcome in outcomes.items() for each in outcome.wrong]
    rows = [
        f"| {kind} | {each.grammars} | {each.refused} | {each.warned} | {each.unfinished} | {each.finished} "
        f"| {CHECKERS[kind]} {version(CHECKERS[kind])} | {len(each.wrong)} |"
        for kind, each in outcomes.items()
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
        *(wrong or ["Nothing."]),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks answers under random grammars and reports what came of it.")
    parser.add_argument("--count", type=int, default=500, help="finished answers for each kind of grammar")
    parser.add_argument("--hostile", type=int, default=1000, help="hostile grammars")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args()
    outcomes, hostile = drill(options.count, options.hostile, seed=options.seed)
    options.report.write_text(report(outcomes, hostile, seed=options.seed))
    wrong = sum(len(each.wrong) for each in outcomes.values())
    print(f"{sum(each.finished for each in outcomes.values())} answers, {wrong} wrong: {options.report}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
