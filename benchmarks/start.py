"""Measures the seconds from process start to the first token of a one-shot prompt, and those of `import torch`.

python benchmarks/start.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(command: list[str], *, until_output: bool) -> float:
    """Returns the seconds from the start of a process to the first byte of its output, or to its end.

    Raises ``subprocess.CalledProcessError`` if it fails.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return first if until_output else time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    prompt = [sys.executable, "-m", "mistralrs_cli", "--prompt", "What is the capital of France?"]
    pairs = []
    for _ in range(args.rounds):
        torch = seconds([sys.executable, "-c", "import torch"], until_output=False)
        pairs.append((seconds(prompt, until_output=True), torch))
    first, torch = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"first token {first:.2f} s, import torch {torch:.2f} s, difference {first - torch:.2f} s")


if __name__ == "__main__":
    main()
