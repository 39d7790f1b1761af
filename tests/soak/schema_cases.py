"""Lets schemathesis send a real server requests that its description allows, and some that it does not.

    python -m tests.soak.schema_cases --count 2000 --report FILE

No answer may be a server's error, take too long, or have a status, a media type or a body that is not described. Any
other answer makes the exit code 1, and is listed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.serving import RunningServer
from tests.tiny import TinyConfig, write_tiny

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
HANG_S = 60
CONTEXT = 96
"""Tokens: requests without a limit of their own end soon."""
MAX_QUEUE = 64
"""A request of 2,048 prompts is then refused, as it is described, instead of being worked on for minutes."""
_COUNTED = re.compile(r"^\s*(\d+) generated", re.MULTILINE)
_STATUS = re.compile(r'^mistralrs_requests_total\{endpoint="([^"]+)",status="(\d+)"\} (\d+)')


@dataclass(frozen=True, slots=True)
class Round:
    """One run of schemathesis."""

    cases: int
    is_clean: bool
    output: str


def run_round(root: str, *, examples: int, seed: int, every_border: bool) -> Round:
    """``examples`` drawn for each operation; ``every_border`` adds what lies at the borders of each field's range."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{root}/openapi.json", "--checks", ",".join(CHECKS)),
        *("--phases", "coverage,fuzzing" if every_border else "fuzzing", "--max-examples", str(examples)),
        *("--seed", str(seed), "--request-timeout", str(HANG_S), "--continue-on-failure", "--no-color"),
        *("--generation-database", "none", "--suppress-health-check", "all"),
    ]
    # a configuration file of the developer's, and the options of our own tests, are not meant for it
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    counted = _COUNTED.search(done.stdout)
    if counted is None:
        raise RuntimeError(f"schemathesis did not run:\n{done.stdout}\n{done.stderr}")
    return Round(int(counted[1]), done.returncode == 0, done.stdout)


def run_rounds(server: RunningServer, count: int, *, examples: int, seed: int, every_border: bool) -> list[Round]:
    """Rounds with seeds that count up, until there were ``count`` cases."""
    rounds: list[Round] = []
    while sum(each.cases for each in rounds) < count:
        number = len(rounds)
        every = every_border and number == 0  # the borders are the same in every round
        rounds.append(run_round(server.root, examples=examples, seed=seed + number, every_border=every))
    return rounds


def statuses(server: RunningServer) -> dict[str, dict[str, int]]:
    """Returns how often each endpoint gave each status, as the server counted."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    _, text = server.ask("GET", "/metrics")
    for line in text.splitlines():
        if match := _STATUS.match(line):
            found[match[1]][match[2]] = int(match[3])
    return found


def drill(
    folder: Path, count: int, *, examples: int, seed: int, every_border: bool
) -> tuple[list[Round], list[str], str]:
    """Starts a server with a tiny model and runs the rounds; returns the rounds, the failures and the report."""
    model = write_tiny(folder / "tiny.gguf", TinyConfig(context=CONTEXT)).path
    with RunningServer("--max-queue", str(MAX_QUEUE), "gguf", "-f", str(model)) as server:
        rounds = run_rounds(server, count, examples=examples, seed=seed, every_border=every_border)
        counted = statuses(server)
        wrong = [] if server.until_quiet(10) else ["a request is still under way"]
        health, _ = server.ask("GET", "/health")
        if health != 200:
            wrong.append(f"/health is {health}")
        if (code := server.stop()) != 0:
            wrong.append(f"the server ended with exit code {code}")
        wrong += [f"said on stderr: {line.rstrip()}" for line in server.said[1:]]
    wrong += [f"round {number}:\n\n```\n{each.output}```" for number, each in enumerate(rounds) if not each.is_clean]
    return rounds, wrong, report(rounds, wrong, counted, seed=seed)


def report(rounds: list[Round], wrong: list[str], counted: dict[str, dict[str, int]], *, seed: int) -> str:
    """Returns the findings as Markdown."""
    cases = sum(each.cases for each in rounds)
    rows = [
        f"| `{endpoint}` | {', '.join(f'{number} x {status}' for status, number in sorted(given.items()))} |"
        for endpoint, given in sorted(counted.items())
    ]
    lines = [
        "# Requests by the description",
        "",
        f"{cases} cases by schemathesis {version('schemathesis')}, from seed {seed} on, in {len(rounds)} rounds.",
        f"Checked, besides that an answer is there after {HANG_S} s:",
        "",
        *(f"- `{check}`" for check in CHECKS),
        "",
        "| endpoint | answers |",
        "| --- | --- |",
        *rows,
        "",
        "## Not as it should be",
        "",
        *([f"- {each}" for each in wrong] or ["Nothing."]),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Lets schemathesis ask a server and reports what came of it.")
    parser.add_argument("--count", type=int, default=2000, help="cases at least")
    parser.add_argument("--examples", type=int, default=60, help="drawn for each operation and round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rounds, wrong, text = drill(
            Path(name), options.count, examples=options.examples, seed=options.seed, every_border=True
        )
    options.report.write_text(text)
    cases = sum(each.cases for each in rounds)
    print(f"{cases} cases, {len(wrong)} things not as they should be: {options.report}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
