"""Seconds from the start of a process to the first and the 32nd token of a one-shot prompt, whole processes in turns.

    python -m benchmarks.start [--rounds 20] [--model MODEL.gguf] [--llamacpp PY]

Beside each other: ``mistralrs --prompt``, the same with ``--connect`` to a server that runs, and, where ``PY`` has it,
llama-cpp-python's ``Llama`` with the same file. Prints medians with the least and the most. Answers are greedy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

PROMPT = "Write a long story about a lighthouse."
TOKENS = 32
MODEL = Path(".models/SmolLM2-135M-Instruct.Q4_1.gguf")
LLAMACPP = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_threads=2, n_ctx=2048, verbose=False)
messages = [{"role": "user", "content": sys.argv[2]}]
for part in model.create_chat_completion(messages, max_tokens=int(sys.argv[3]), temperature=0.0, stream=True):
    print(part["choices"][0]["delta"].get("content", ""), end="", flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--llamacpp", metavar="PY")
    args = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have bytecode
    path = args.model.resolve()
    row = ["gguf", "-m", str(path.parent), "-f", path.name]
    program = [sys.executable, "-m", "mistralrs_cli"]
    with server([*program, "--port", str(port := free_port()), *row], port):
        asked = ["--temperature", "0", "--max-tokens", str(TOKENS), "--prompt", PROMPT]
        commands = {
            "mistralrs --prompt": [*program, *asked, *row],
            "mistralrs --connect": [*program, "--connect", f"http://127.0.0.1:{port}", *asked],
        }
        if args.llamacpp:
            commands["llama-cpp-python"] = [args.llamacpp, "-c", LLAMACPP, str(path), PROMPT, str(TOKENS)]
        show(timed(commands, args.rounds))


def timed(commands: Mapping[str, list[str]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds to the first byte of the output and to the end of the process, of each round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            found[name].append(seconds(command))
    return found


def show(found: Mapping[str, list[tuple[float, float]]]) -> None:
    print(f"| seconds from the start | first token | {TOKENS} tokens and the end |")
    print("| --- | --- | --- |")
    for name, pairs in found.items():
        cells = [
            f"{statistics.median(column):.2f} ({min(column):.2f} to {max(column):.2f})"
            for column in zip(*pairs, strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def seconds(command: list[str]) -> tuple[float, float]:
    """Returns the seconds from the start of a process to the first byte of its output, and to its end.

    Raises ``subprocess.CalledProcessError`` if it fails.
    """
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - started
        while process.stdout.read(4096):
            pass
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return first, time.perf_counter() - started


@contextlib.contextmanager
def server(command: list[str], port: int) -> Iterator[None]:
    """A server that answers before the body begins and ends after it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    main()
