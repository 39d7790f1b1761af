"""Kills a batch of prompts repeatedly; the same command must go on until every line is answered once, in order.

    python -m tests.soak.killed_batches [--kills 50] [--report FILE]

The command is ``cat lines.txt | mistralrs --prompt-file - --schema schema.json --out answers.jsonl``, killed with
SIGKILL. After some kills the end of the file is cut off too, as a machine that loses its power may leave it. The exit
code is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import jsonschema

from tests.conftest import DEFAULT_MODEL
from tests.soak.http_load import WORDS

LATEST_KILL_S = 0.15
"""Seconds after the first new answer of a run."""
LATEST_EARLY_KILL_S = 2.0
"""Seconds after the start, for kills that need not wait for an answer."""
LOST_BYTES = 400
"""Bytes that are cut off, at most."""
SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "color": {"enum": ["red", "green", "blue"]}},
    "required": ["sure", "color"],
    "additionalProperties": False,
}
NOTICE = "an answer that was cut short is removed"


@dataclass(slots=True)
class Result:
    lines: int
    kills: int = 0
    with_answers: int = 0
    """Kills of a run that had added answers."""
    cut: int = 0
    """Kills after which the end of the file was cut off."""
    removed: int = 0
    """Runs that said that they removed an answer that was cut short."""
    batches: int = 0
    """Files that were completed and compared."""
    findings: list[str] = field(default_factory=list)

    def report(self) -> str:
        return "\n".join(
            [
                "# A batch of prompts killed while it is answered",
                "",
                f"{self.kills} kills, {self.with_answers} of them after new answers; {self.cut} times the end of the",
                f"file was cut off as well, and {self.removed} runs removed such an answer.",
                f"{self.batches} batches of {self.lines} lines were completed and compared with one that never",
                "stopped.",
                "",
                "Findings: " + ("none" if not self.findings else ""),
                *(f"- {finding}" for finding in self.findings),
                "",
            ]
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """The command of the drill."""

    model: Path
    lines: Path

    @contextmanager
    def running(self, out: Path) -> Iterator[subprocess.Popen[bytes]]:
        schema = self.lines.with_name("schema.json")
        schema.write_text(json.dumps(SCHEMA))
        options = ["--prompt-file", "-", "--schema", str(schema), "--out", str(out), "--seed", "11"]
        options += ["--max-tokens", "60"]
        command = [sys.executable, "-m", "mistralrs_cli", *options, "auto", str(self.model)]
        with (
            subprocess.Popen(["cat", str(self.lines)], stdout=subprocess.PIPE) as cat,
            subprocess.Popen(command, stdin=cat.stdout, stderr=subprocess.PIPE) as process,
        ):
            assert cat.stdout is not None
            cat.stdout.close()  # or cat would outlive its reader
            try:
                yield process
            finally:
                process.kill()

    def finish(self, out: Path) -> tuple[int, str]:
        """Lets the command run to its end; returns its exit code and what it said."""
        with self.running(out) as process:
            _, said = process.communicate(timeout=600)
        return process.returncode, said.decode()


def write_lines(path: Path, *, count: int, seed: int) -> None:
    """Writes prompts; some lines are blank, and one is too long for any model."""
    random = Random(seed)
    lines = [" ".join(random.choice(WORDS) for _ in range(random.randrange(1, 12))) for _ in range(count)]
    lines[count // 3] = "word " * 300_000
    for place in range(7, count, 10):
        lines[place] += "\n"
    path.write_text("\n".join(lines) + "\n")


def answers(out: Path) -> list[dict[str, Any]]:
    """Returns the parts of complete records that two runs have in common."""
    if not out.exists():
        return []
    kept = ("line", "digest", "options", "seed", "text", "finish_reason", "error")
    lines = [line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [{name: record.get(name) for name in kept} for record in map(json.loads, lines)]


def drill(model: Path, folder: Path, *, kills: int, lines: int, seed: int = 5) -> Result:
    """Kills batches until ``kills`` have happened, and compares each that is complete with one that never stopped."""
    random, result = Random(seed), Result(lines)
    batch = Batch(model, folder / "lines.txt")
    write_lines(batch.lines, count=lines, seed=seed)
    whole, out = folder / "whole.jsonl", folder / "answers.jsonl"
    code, said = batch.finish(whole)
    expected = answers(whole)
    if (code, len(expected)) != (1, lines) or sum(each["error"] is not None for each in expected) != 1:
        result.findings.append(f"the batch that never stopped ended with {code} after {len(expected)} lines: {said}")
        return result
    texts = [each["text"] for each in expected if each["finish_reason"] == "stop"]
    result.findings += [f"{text!r} does not obey the schema" for text in texts if not _obeys(text)]
    while result.kills < kills:
        complete = _kill(batch, out, random, result)
        _compare_beginning(out, expected, result)
        if complete:
            out.unlink()
            result.batches += 1
    code, said = batch.finish(out)
    result.batches += 1
    result.removed += NOTICE in said
    if code != 1 or answers(out) != expected:
        result.findings.append(f"the last run ended with {code} and {len(answers(out))} of {lines} answers: {said}")
    return result


def _obeys(text: str) -> bool:
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def _kill(batch: Batch, out: Path, random: Random, result: Result) -> bool:
    """Runs the command and kills it; returns True if it was faster."""
    size = out.stat().st_size if out.exists() else 0
    with batch.running(out) as process:
        if random.random() < 0.25:
            time.sleep(random.uniform(0, LATEST_EARLY_KILL_S))
        else:
            while process.poll() is None and (not out.exists() or out.stat().st_size <= size):
                time.sleep(0.001)
            time.sleep(random.uniform(0, LATEST_KILL_S))
        if process.poll() is not None:
            assert process.stderr is not None
            said = process.stderr.read().decode()
            result.removed += NOTICE in said
            if process.returncode != 1:
                result.findings.append(f"a run ended with {process.returncode}: {said}")
                result.kills += 1  # or a run that always fails would never end the drill
                return False
            return True
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        result.removed += NOTICE in process.stderr.read().decode()
    result.kills += 1
    grown = (out.stat().st_size if out.exists() else 0) - size
    result.with_answers += grown > 0
    if grown > LOST_BYTES and random.random() < 0.3:
        with out.open("r+b") as file:
            file.truncate(size + grown - random.randrange(1, LOST_BYTES))
        result.cut += 1
    return False


def _compare_beginning(out: Path, expected: list[dict[str, Any]], result: Result) -> None:
    found = answers(out)
    if found != expected[: len(found)]:
        place = next(place for place, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
        result.findings.append(f"after kill {result.kills}, answer {place} is {found[place]}, not {expected[place]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--lines", type=int, default=300)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = drill(DEFAULT_MODEL, Path(folder), kills=args.kills, lines=args.lines)
    print(result.report())
    if args.report:
        args.report.write_text(result.report())
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
