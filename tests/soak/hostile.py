"""Sends a real server requests that no honest client sends, and checks that it answers an honest one as before.

    python -m tests.soak.hostile --count 2000 --report FILE

An attack is named by its number: --first 417 --count 1 repeats number 417. Each is expected to get an answer below 500
or a closed connection; anything else is listed in the report and makes the exit code 1, and so does a good request that
is not answered, or not as it was before the first attack.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving import RunningServer
from tests.soak.hostile_requests import CHAT, Attack, attack
from tests.tiny import write_tiny

HANG_S = 60.0
"""Seconds that an answer may take while other clients keep the server busy."""
AT_ONCE = 16
GOOD_EVERY = 100
MORE_FILES = 4
"""The pipes of a second template process, which two requests at once start, and connections that are just ending."""
MORE_THREADS = 3 + AT_ONCE
"""Threads that the server keeps: three prepare bodies, and others read a file or write a long answer, one a request."""
QUIET_S = 30.0
QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 12,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attack: a status, ``closed`` without an answer, ``left`` by the client, or ``hang``."""

    number: int
    kind: str
    result: str
    seconds: float

    @property
    def is_sound(self) -> bool:
        return self.result in ("closed", "left") or "200" <= self.result < "500"


@dataclass(frozen=True, slots=True)
class State:
    """The resources that a server holds, which must be the same after the attacks as before."""

    connections: int
    """Open files of the process that answers."""
    threads: int
    answer: str
    """The answer to the good request."""


async def carry_out(host: str, port: int, number: int, planned: Attack) -> Outcome:
    """Makes one attack on one connection. Every reaction of the server is an outcome."""
    started = time.perf_counter()

    def outcome(result: str) -> Outcome:
        return Outcome(number, planned.kind, result, time.perf_counter() - started)

    try:
        async with asyncio.timeout(HANG_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return outcome(await _converse(planned, reader, writer))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return outcome("hang")


async def _converse(planned: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    try:
        for piece in planned.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(planned.pause)
    except OSError:  # it has answered before everything was sent, or closed
        return await _status(reader)
    if planned.end in ("leave", "reset"):
        await asyncio.sleep(0.02)
        if planned.end == "reset":
            at_once = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        return "left"
    if planned.end == "half-close":
        with contextlib.suppress(OSError):
            writer.write_eof()
    return await _status(reader)


async def _status(reader: asyncio.StreamReader) -> str:
    """The status of the first answer, once the connection has ended."""
    try:
        line = await reader.readline()
        while line.startswith(b"HTTP/1.1 100"):  # it only permits the body
            await reader.readline()
            line = await reader.readline()
        while await reader.read(65536):
            pass
    except OSError:
        return "closed"
    words = line.split()
    return words[1].decode("latin-1") if len(words) > 1 and line.startswith(b"HTTP/") else "closed"


def state_of(server: RunningServer) -> State:
    """Raises AssertionError if a good request is not answered."""
    status, found = server.ask("POST", CHAT, QUESTION, timeout=HANG_S)
    assert status == 200, (status, found)
    folder = Path(f"/proc/{server.process.pid}")
    return State(
        len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")), found["choices"][0]["message"]["content"]
    )


async def attack_all(server: RunningServer, numbers: range, *, seed: int, answer: str) -> list[Outcome]:
    """Makes all attacks, several at a time, with a good request now and then.

    Raises AssertionError if that one fails.
    """
    outcomes: list[Outcome] = []
    for first in range(numbers.start, numbers.stop, GOOD_EVERY):
        left = iter(range(first, min(first + GOOD_EVERY, numbers.stop)))

        async def work(left: Any = left) -> None:
            for number in left:
                outcomes.append(await carry_out(server.host, server.port, number, attack(number, seed)))

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        found = await asyncio.to_thread(state_of, server)
        assert found.answer == answer, f"after attack {first + GOOD_EVERY}: {found.answer!r} instead of {answer!r}"
    return outcomes


def complaints(outcomes: list[Outcome], before: State, after: State, said: list[str]) -> list[str]:
    """Returns the findings: all unexpected outcomes."""
    found = [f"number {each.number}, {each.kind}: {each.result}" for each in outcomes if not each.is_sound]
    if after.connections > before.connections + MORE_FILES:
        found.append(f"{after.connections} open files; {before.connections} before")
    if after.threads > before.threads + MORE_THREADS:
        found.append(f"{after.threads} threads; {before.threads} before")
    return found + [f"said on stderr: {line.rstrip()}" for line in said]


def report(outcomes: list[Outcome], wrong: list[str], *, seed: int, peak_bytes: int, model: str) -> str:
    """Returns the findings as Markdown."""
    kinds: dict[str, Counter[str]] = {}
    for each in outcomes:
        kinds.setdefault(each.kind, Counter())[each.result] += 1
    slowest = max(outcomes, key=lambda each: each.seconds)
    lines = [
        "# Hostile requests",
        "",
        f"{len(outcomes)} attacks, seed {seed}, {AT_ONCE} at a time, on a server with {model}; after each {GOOD_EVERY}",
        "a good request, which was always answered as before the first. `closed`: no answer, the connection was ended;",
        "`left`: it was the client that went.",
        "",
        "| attack | outcomes |",
        "| --- | --- |",
        *(f"| {kind} | {_counted(results)} |" for kind, results in kinds.items()),
        "",
        f"Slowest: number {slowest.number}, {slowest.kind}, with {slowest.seconds:.1f} s. "
        f"Largest: the process that answers had {peak_bytes / 2**20:.0f} MiB.",
        "",
        "## Not as it should be",
        "",
        *([f"- {each}" for each in wrong] or ["Nothing."]),
    ]
    return "\n".join(lines) + "\n"


def _counted(results: Counter[str]) -> str:
    return ", ".join(f"{count} x {result}" for result, count in sorted(results.items()))


def run(model: Path, numbers: range, *, seed: int) -> tuple[list[Outcome], list[str], int]:
    """Starts a server, attacks it, and ends it; returns outcomes, findings, and the peak of its memory in bytes."""
    with RunningServer("gguf", "-f", str(model)) as server:
        for _ in range(3):  # resources that are made once for all requests exist now
            before = state_of(server)
        outcomes = asyncio.run(attack_all(server, numbers, seed=seed, answer=before.answer))
        wrong = [] if server.until_quiet(QUIET_S) else ["a request is still under way"]
        after = state_of(server)
        peak = server.peak_bytes()
        if (code := server.stop()) != 0:
            wrong.append(f"the server ended with exit code {code}")
    return outcomes, wrong + complaints(outcomes, before, after, server.said[1:]), peak


def main() -> int:
    parser = argparse.ArgumentParser(description="Sends hostile requests to a server and reports what came of them.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first attack")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--model", type=Path, help="a GGUF file; a tiny one is made where none is given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = options.model or write_tiny(Path(name) / "tiny.gguf").path
        numbers = range(options.first, options.first + options.count)
        outcomes, wrong, peak = run(model, numbers, seed=options.seed)
    options.report.write_text(report(outcomes, wrong, seed=options.seed, peak_bytes=peak, model=model.stem))
    print(f"{len(outcomes)} attacks, {len(wrong)} things not as they should be: {options.report}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
