"""Prompts and answers with each precision, in turns.

    python -m benchmarks.precisions MODEL.gguf... [--rounds 3] [--prompt 512] [--answer 64] [--threads 2]
        [--out docs/reports/precisions.json]

A round is one `mistralrs bench` of each precision, one after the other. Writes OUT, in which the figures of other files
stay, and prints medians relative to `default`. `scripts/write_readme_tables.py` puts them into the README.
Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import write
from benchmarks.logits import PRECISIONS

FIGURES = {"pp": "prompt", "tg": "answer"}
"""Fields of a record, by the names of the tests of `bench`."""


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=lambda text: Path(text).resolve(), nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/reports/precisions.json"))
    args = parser.parse_args(given)
    records: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    for path in args.models:
        found: dict[str, dict[str, Any]] = {each: {"prompt": [], "answer": []} for each in PRECISIONS}
        for _ in range(args.rounds):
            for precision, record in found.items():
                add(record, benched(path, precision, args))
        records = [record for record in records if record["file"] != path.name]
        records += [{"file": path.name, "precision": precision, **record} for precision, record in found.items()]
        write(args.out, json.dumps(records, indent=1))
        for precision, record in found.items():
            ratios = {name: ratio_of(record, found["default"], name) for name in FIGURES.values()}
            print(path.name, precision, *(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))


def benched(path: Path, precision: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the lines of one `mistralrs bench`. Raises ``CalledProcessError``."""
    tests = ["-p", str(args.prompt), "-n", str(args.answer), "-r", "1", "--json"]
    options = ["--precision", precision, "--threads", str(args.threads)]
    command = [sys.executable, "-m", "mistralrs_cli", *options, "bench", *tests, "gguf", "-f", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def add(record: dict[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Adds the figures of one `mistralrs bench` to those of a precision."""
    for line in lines:
        record[FIGURES[line["test"][:2]]].append(line["tok_s_median"])
        record |= {"isa": line["isa"], "threads": line["threads"]}


def ratio_of(record: Mapping[str, Any], default: Mapping[str, Any], figure: str) -> float:
    """Returns the median of a figure relative to that of `default`."""
    return statistics.median(record[figure]) / statistics.median(default[figure])


if __name__ == "__main__":
    main()
