"""Tiny models whose tensors are stored in all types, each compared with plain torch in a process of its own.

    python -m tests.soak.quantized_whole [--count 300] [--report FILE]

There are two drills. Pairs: every role of ten families alone in every type that a file can store it in. Mixed: files in
which each tensor has a random type of its own. Each file must give the logits of plain torch, or be refused by name;
anything else is listed in the report and makes the exit code 1. A mixed file is named by its number:
--first 17 --count 1 --no-pairs repeats number 17.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest.mock import patch

import torch

from tests.retyped import FAMILIES, STORABLE, Base, difference, rounding, write_base
from tests.soak.guarded import LOADED, REFUSED, SOUND_OUTCOMES, Outcome, run_guarded
from tests.tolerances import TWO_TERMS

LIMIT_BYTES = 1 << 30
HANG_SECONDS = 120.0
MEMORY = 512 << 20
"""Free bytes that the memory plan is given: less than a guarded process may take."""


@dataclass(frozen=True, slots=True)
class Case:
    """A file that was tried."""

    name: str
    family: str
    outcome: Outcome


def compare(path: Path) -> None:
    """Compares a file with torch. Raises ``LoadError`` for a refused file, AssertionError for one with other logits."""
    torch.set_num_threads(1)
    with patch("mistralrs.loading.pipeline.available_bytes", return_value=MEMORY):
        off = difference(path)
        allowed = TWO_TERMS if off <= TWO_TERMS else max(TWO_TERMS, rounding(path))
    assert off <= allowed, f"off by {off:.1e} of the range of the logits, {allowed:.1e} are what rounding costs"


def bases(folder: Path) -> dict[str, Base]:
    return {name: Base.read(write_base(folder, name)) for name in FAMILIES}


def pairs(found: dict[str, Base]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Returns family, name and types of every pair of a role and a type that can store it."""
    for family, base in found.items():
        for role, names in base.roles().items():
            for type_ in STORABLE.values():
                if base.can_store(names[0], type_):
                    yield family, f"{family} {role} {type_.name}", dict.fromkeys(names, type_.name)


def mixed(found: dict[str, Base], numbers: range, *, seed: int) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Returns family, name and types of files in which every tensor has its own; one in two is a mixture of experts."""
    experts = [family for family in found if family.startswith("mixtral")]
    dense = [family for family in found if family not in experts]
    for number in numbers:
        random = Random(f"{seed}:{number}")
        family = random.choice(experts if number % 2 else dense)
        base = found[family]
        types = {
            name: random.choice([type_.name for type_ in STORABLE.values() if base.can_store(name, type_)])
            for name in base.tensors
        }
        yield family, f"mixed {number}", types


def run_cases(found: dict[str, Base], files: Iterator[tuple[str, str, dict[str, str]]], folder: Path) -> list[Case]:
    """Runs one file after the other."""
    cases = []
    for family, name, types in files:
        path = found[family].write(folder / "case.gguf", types)
        outcome = run_guarded(compare, path, seconds=HANG_SECONDS, limit_bytes=LIMIT_BYTES)
        if outcome.kind == REFUSED and str(path) not in outcome.detail:
            outcome = Outcome("wrong error", f"does not name the file: {outcome.detail}")
        cases.append(Case(name, family, outcome))
        path.unlink()
    return cases


def report(drills: dict[str, list[Case]], *, seed: int) -> str:
    """Returns the findings as Markdown."""
    lines = [
        "# Every part of a model in every storage type",
        "",
        f"Tiny models of {len(FAMILIES)} families in {len(STORABLE)} types, seed {seed}; the kernels' logits against",
        f"those of plain torch, at most {TWO_TERMS:.0e} of their range apart, or what int8 activations cost that file",
        "where that is more; and tokens alone against their prompt, bit for bit.",
        "",
        "| drill | family | files | equal | refused | wrong |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for drill, cases in drills.items():
        for family in FAMILIES:
            kinds = Counter(case.outcome.kind for case in cases if case.family == family)
            if total := kinds.total():
                wrong = total - kinds[LOADED] - kinds[REFUSED]
                lines.append(f"| {drill} | {family} | {total} | {kinds[LOADED]} | {kinds[REFUSED]} | {wrong} |")
    everything = [case for cases in drills.values() for case in cases]
    failures = [case for case in everything if case.outcome.kind not in SOUND_OUTCOMES]
    lines += ["", "## Not as it should be", ""]
    lines += [f"- {c.name} ({c.family}): {c.outcome.kind}: {c.outcome.detail}" for c in failures] or ["Nothing."]
    reasons = Counter(_reason(case.outcome.detail) for case in everything if case.outcome.kind == REFUSED)
    lines += ["", "## Why files were refused", ""]
    lines += [f"- {count} x {reason}" for reason, count in reasons.most_common()] or ["None was."]
    return "\n".join(lines) + "\n"


def _reason(message: str) -> str:
    """Returns the message without the file, and without numbers that differ from case to case."""
    return re.sub(r"\d+", "N", message.split(".gguf: ", 1)[1])[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="mixed files")
    parser.add_argument("--first", type=int, default=0, help="number of the first mixed file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-pairs", action="store_true", help="mixed files alone")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    drills = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = bases(folder)
        if not options.no_pairs:
            drills["pairs"] = run_cases(found, pairs(found), folder)
        numbers = range(options.first, options.first + options.count)
        drills["mixed"] = run_cases(found, mixed(found, numbers, seed=options.seed), folder)
    text = report(drills, seed=options.seed)
    print(text)
    if options.report:
        options.report.write_text(text)
    return 1 if any(case.outcome.kind not in SOUND_OUTCOMES for cases in drills.values() for case in cases) else 0


if __name__ == "__main__":
    sys.exit(main())
