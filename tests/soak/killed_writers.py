"""Kills a server repeatedly while it writes KV blocks and its log; the next start must give the right answers.

    python -m tests.soak.killed_writers [--kills 50] [--report FILE]

The exit code is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from random import Random

from tests.conftest import DEFAULT_MODEL
from tests.serving import RunningServer
from tests.soak.http_load import WORDS

LATEST_KILL_S = 0.6
"""Seconds after the first request of a run was sent."""
BUSY = 4
"""Requests that are under way when the server is killed."""


@dataclass(slots=True)
class Result:
    kills: int = 0
    checked: int = 0
    """Answers that were compared."""
    cached: int = 0
    """Prompt tokens that a killed server had computed and that were reused."""
    blocks: int = 0
    """Files of KV blocks in the end."""
    cut_lines: int = 0
    """Lines of the log."""
    findings: list[str] = field(default_factory=list)

    def report(self) -> str:
        return "\n".join(
            [
                "# A server killed while it writes",
                "",
                f"{self.kills} kills; {self.checked} answers compared, {self.cached} of their tokens from disk;",
                f"{self.blocks} KV blocks in the end; {self.cut_lines} log lines cut short, each by a kill.",
                "",
                "Findings: " + ("none" if not self.findings else ""),
                *(f"- {finding}" for finding in self.findings),
                "",
            ]
        )


def question(number: int) -> dict[str, object]:
    """Returns a request whose prompt fills some blocks; the same number is the same request."""
    random = Random(number)
    prompt = " ".join(random.choice(WORDS) for _ in range(random.randrange(40, 400)))
    return {"model": "default", "prompt": prompt, "max_tokens": 8, "temperature": 0}


def answer(server: RunningServer, number: int) -> tuple[str, int]:
    """Returns the text, and how many tokens of the prompt were cached."""
    status, found = server.ask("POST", "/v1/completions", question(number))
    if status != 200:
        raise RuntimeError(f"{status}: {found}")
    return found["choices"][0]["text"], found["usage"]["prompt_tokens_details"]["cached_tokens"]


def drill(model: Path, folder: Path, *, kills: int, seed: int = 3) -> Result:
    """Kills a server repeatedly; before each kill it must answer as one that was never killed."""
    random, result = Random(seed), Result(kills)
    with RunningServer("auto", str(model)) as server:
        expected = {number: answer(server, number)[0] for number in range(12)}
    words = ("--kv-dir", str(folder / "kv"), "--log", str(folder / "log"), "auto", str(model))
    for _ in range(kills + 1):
        with RunningServer(*words) as server:
            for number in random.sample(range(12), 2):
                text, cached = answer(server, number)
                result.checked += 1
                result.cached += cached
                if text != expected[number]:
                    result.findings.append(f"question {number} got {text!r} instead of {expected[number]!r}")
            _kill_at_work(server, random)
    result.blocks = len(list((folder / "kv").glob("*/*.kv")))
    result.cut_lines = sum(not _is_record(line) for line in (folder / "log").read_bytes().splitlines())
    if result.cut_lines > kills + 1:
        result.findings.append(f"{result.cut_lines} log lines are no records after {kills + 1} kills")
    if not result.blocks:
        result.findings.append("no KV block was written")
    return result


def _kill_at_work(server: RunningServer, random: Random) -> None:
    def ask(number: int) -> None:
        try:
            answer(server, number)
        except (OSError, HTTPException):
            return  # the server was killed

    with ThreadPoolExecutor(BUSY) as pool:
        for number in random.sample(range(100, 10_000), BUSY):
            pool.submit(ask, number)
        time.sleep(random.uniform(0, LATEST_KILL_S))
        server.stop(signal.SIGKILL)


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = drill(DEFAULT_MODEL, Path(folder), kills=args.kills)
    print(result.report())
    if args.report:
        args.report.write_text(result.report())
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
