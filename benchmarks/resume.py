"""Measures the wait for the first token of a chat that is resumed, beside the time that reading the whole chat takes.

    python -m benchmarks.resume MODEL.gguf [--tokens 4000] [--rounds 1] [--report FILE.json]

Each round has a chat and a cache folder of its own. A first process goes on with the saved chat and computes all of it;
a second one goes on after that has left. Both are started as a user does, and asked by a line of their stdin. Times are
from the question to the first token, without loading. The exit code is 1 if resuming takes over 10 % of reading.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tests.soak.http_load import WORDS

LIMIT = 0.1
TURN_WORDS = 150
"""Words of a question or an answer."""
TOKENS_A_WORD = 1.1
_STATS = re.compile(r"first ([\d.]+) s .*cached ([\d ]+)/([\d ]+) ·")


@dataclass(frozen=True)
class Wait:
    """One question to a chat."""

    first_s: float
    """From the request to the first token."""
    start_s: float
    """From the start of the process to its first token: loading is in it."""
    cached: int
    """Tokens of the prompt that were not computed."""
    prompt: int


def ask(model: Path, question: str, variables: dict[str, str]) -> Wait:
    """Goes on with the last chat in a process of its own, which ends with its answer."""
    words = ["-i", "--resume", "--stats", "--temperature", "0", "--max-tokens", "4", "auto", str(model)]
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "mistralrs_cli", *words],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(question.encode() + b"\n")
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)
        start_s = time.perf_counter() - begun
        _, err = process.communicate()
    found = _STATS.search(err.decode())
    if process.returncode or found is None:
        raise RuntimeError(f"the chat ended with {process.returncode}: {err.decode()}")
    cached, prompt = (int(each.replace(" ", "")) for each in found.groups()[1:])
    return Wait(float(found[1]), start_s, cached, prompt)


def saved_chat(folder: Path, tokens: int, random: Random) -> dict[str, str]:
    """Saves a chat of about so many tokens in a folder; returns the variables with which it is resumed."""
    turns = max(1, round(tokens / TOKENS_A_WORD / TURN_WORDS / 2))
    chat = [
        {"role": role, "content": " ".join(random.choice(WORDS) for _ in range(TURN_WORDS))}
        for _ in range(turns)
        for role in ("user", "assistant")
    ]
    (folder / "chat.json").write_text(json.dumps(chat), encoding="utf-8")
    variables = {**os.environ, "XDG_DATA_HOME": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "mistralrs_cli", "chats", "import", str(folder / "chat.json")]
    subprocess.run(command, env=variables, check=True, capture_output=True)
    return variables


def main() -> int:
    """Measures the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--report", type=Path, help="also writes the figures as JSON")
    options = parser.parse_args()
    rounds: list[dict[str, Wait]] = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            variables = saved_chat(Path(folder), options.tokens, Random(number))
            whole = ask(options.model, "What was the first word?", variables)
            resumed = ask(options.model, "And the last one?", variables)
        rounds.append({"whole": whole, "resumed": resumed})
        for name, each in rounds[-1].items():
            print(
                f"{name:<8} first token {each.first_s:.2f} s, from the start {each.start_s:.2f} s, "
                f"cached {each.cached} of {each.prompt}",
                flush=True,
            )
    share = statistics.median(each["resumed"].first_s / each["whole"].first_s for each in rounds)
    print(f"a resumed chat takes {100 * share:.1f} % of the time that reading it takes")
    if options.report:
        figures = [{name: asdict(wait) for name, wait in each.items()} for each in rounds]
        options.report.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(share > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
