"""Opens many damaged GGUF files, each in a process of its own.

    python -m tests.soak.gguf_mutations --count 1000 --report FILE

A case is named by its number: --first 417 --count 1 repeats number 417. Each is expected to load correctly or to be
refused with an error that names the file; anything else is listed in the report and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.conftest import DEFAULT_MODEL
from tests.loading.mutations import Base, mutate
from tests.soak.guarded import REFUSED, SOUND_OUTCOMES, Load, Outcome, run_guarded
from tests.tiny import StorageTypes, TinyConfig, write_tiny

LIMIT_BYTES = 1 << 30
HANG_SECONDS = 10.0
SHOWN_REASONS = 40


@dataclass(frozen=True, slots=True)
class Case:
    number: int
    base: str
    outcome: Outcome


def make_bases(folder: Path, default_model: Path | None) -> list[Base]:
    """Returns tiny files of plain and of quantized types, and the default model's header if that is available."""
    plain = write_tiny(folder / "plain.gguf")
    mixed = StorageTypes(embedding="Q8_0", attention="Q4_K", feed_forward="Q6_K", head="Q5_1")
    config = TinyConfig(hidden=256, head_dim=64, feed_forward=256, layers=1, tied=False, types=mixed)
    quantized = write_tiny(folder / "quantized.gguf", config)
    bases = [Base.read(plain.path), Base.read(quantized.path)]
    if default_model is not None:
        bases.append(Base.read(default_model, header_only=True))
    return bases


def run_cases(bases: list[Base], load: Load, folder: Path, *, numbers: range, seed: int) -> list[Case]:
    """Runs one case after the other; case n damages base n modulo their number."""
    cases = []
    for number in numbers:
        base = bases[number % len(bases)]
        path = folder / f"mutant-{number}.gguf"
        mutate(base, Random(f"{seed}:{number}")).write(path)
        outcome = run_guarded(load, path, seconds=HANG_SECONDS, limit_bytes=LIMIT_BYTES)
        if outcome.kind == REFUSED and str(path) not in outcome.detail:
            outcome = Outcome("wrong error", f"does not name the file: {outcome.detail}")
        cases.append(Case(number, base.name, outcome))
        path.unlink()
    return cases


def report(cases: list[Case], *, seed: int) -> str:
    """Returns the findings as Markdown."""
    kinds = Counter(case.outcome.kind for case in cases)
    slowest = max(cases, key=lambda case: case.outcome.seconds)
    largest = max(cases, key=lambda case: case.outcome.peak_bytes)
    lines = [
        "# Damaged GGUF files",
        "",
        f"{len(cases)} files, seed {seed}, made of {', '.join(sorted({case.base for case in cases}))}.",
        "",
        "| outcome | files |",
        "| --- | --- |",
        *(f"| {kind} | {count} |" for kind, count in kinds.most_common()),
        "",
        f"Slowest: number {slowest.number} with {slowest.outcome.seconds:.3f} s. "
        f"Largest: number {largest.number} with {largest.outcome.peak_bytes / 2**20:.0f} MiB.",
        "",
        "## Not as it should be",
        "",
    ]
    failures = [case for case in cases if case.outcome.kind not in SOUND_OUTCOMES]
    lines += [f"- number {c.number} of {c.base}: {c.outcome.kind}: {c.outcome.detail}" for c in failures] or [
        "Nothing."
    ]
    reasons = Counter(_reason(case.outcome.detail) for case in cases if case.outcome.kind == REFUSED)
    lines += ["", "## Why files were refused", ""]
    lines += [f"- {count} x {reason}" for reason, count in reasons.most_common(SHOWN_REASONS)]
    return "\n".join(lines) + "\n"


def _reason(message: str) -> str:
    """Returns the message without the file's name and without numbers that differ from case to case."""
    reason = message.split(".gguf: ", 1)[1]
    return re.sub(r"\d+", "N", re.sub(r"'.*?'|\".*?\"|b'.*?'", "'...'", reason))[:160]


def _loader(name: str) -> Load:
    module, function = name.split(":")
    load: Load = getattr(importlib.import_module(module), function)
    return load


def main() -> int:
    parser = argparse.ArgumentParser(description="Opens damaged GGUF files and reports what came of it.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    model = Path(os.environ.get("MISTRALRS_TEST_MODEL") or DEFAULT_MODEL)
    parser.add_argument("--model", type=Path, default=model, help="left out where there is no such file")
    parser.add_argument(
        "--load", type=_loader, default="tests.loading.mutations:open_and_read", help="module:function(path) to call"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bases = make_bases(folder, options.model if options.model.is_file() else None)
        numbers = range(options.first, options.first + options.count)
        cases = run_cases(bases, options.load, folder, numbers=numbers, seed=options.seed)
    options.report.write_text(report(cases, seed=options.seed))
    failures = sum(case.outcome.kind not in SOUND_OUTCOMES for case in cases)
    print(f"{len(cases)} files, {failures} not as they should be: {options.report}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
