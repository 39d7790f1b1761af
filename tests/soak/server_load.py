"""Minutes of many streams against a real server: no failure, no leak, and every answer as if it were alone.

    python -m tests.soak.server_load [--seconds 180] [--streams 64] [--report FILE]

A fifth of the clients hang up on the way. The exit code is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tests.conftest import DEFAULT_MODEL
from tests.serving import RunningServer
from tests.soak.http_load import Ask, Heard, run_streams, workload

DISTINCT = 120
"""Different prompts; each is sent many times, beside different others."""
MAX_TOKENS = 48
GROWTH = 1.05
"""Limits on the resources held at the end, compared with a third of the way."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment, its engine process included."""

    seconds: float
    memory: int
    threads: int
    held_blocks: float


@dataclass(frozen=True, slots=True)
class Result:
    answers: list[tuple[Ask, Heard]]
    alone: dict[str, str]
    samples: list[Sample]
    """Samples, at least two a second."""
    left_blocks: float
    """The resources held after the end."""

    def findings(self) -> list[str]:
        """The findings; empty if all is well."""
        found = [f"{heard.error} ({len(ask.prompt)} characters)" for ask, heard in self.answers if heard.error]
        stayed = [(ask, heard) for ask, heard in self.answers if ask.hang_up_after is None]
        differing = sum(heard.text != self.alone[ask.prompt] for ask, heard in stayed if not heard.error)
        if differing:
            found.append(f"{differing} of {len(stayed)} answers differ from the answer alone")
        if not stayed:
            found.append("no answer was finished")
        if self.left_blocks:
            found.append(f"{self.left_blocks:.0f} KV blocks are held by nobody's request")
        return found + [
            f"{name} grew from {early:.0f} to {late:.0f}"
            for name, early, late in self.growth()
            if late > early * GROWTH
        ]

    def growth(self) -> list[tuple[str, float, float]]:
        """Returns means over the last sixth of the first third of the samples, and over the last eighteenth of all."""
        count = len(self.samples)
        early, late = self.samples[count * 5 // 18 : count // 3 + 1], self.samples[count * 17 // 18 :]
        return [
            (name, fmean(getattr(s, field) for s in early), fmean(getattr(s, field) for s in late))
            for name, field in (("memory in bytes", "memory"), ("threads", "threads"))
        ]

    def report(self, streams: int) -> str:
        left = Counter("hung up" if ask.hang_up_after is not None else "finished" for ask, _ in self.answers)
        tokens = sum(heard.tokens for _, heard in self.answers)
        first = sorted(heard.pieces[0] for _, heard in self.answers if heard.pieces)
        lines = [
            "# Load on the server",
            "",
            f"{streams} streams for {self.samples[-1].seconds:.0f} s: {left['finished']} answers finished, "
            f"{left['hung up']} clients hung up, {tokens} tokens,",
            f"first token after {first[len(first) // 2]:.2f} s (median), {first[int(len(first) * 0.95)]:.2f} s (p95).",
            f"Blocks held at most {max(s.held_blocks for s in self.samples):.0f}, in the end {self.left_blocks:.0f}.",
            "",
            *(f"- {name}: {early:.0f} after a third, {late:.0f} at the end" for name, early, late in self.growth()),
            "",
            "Findings: " + ("none" if not self.findings() else ""),
            *(f"- {found}" for found in self.findings()[:40]),
        ]
        return "\n".join(lines) + "\n"


def drill(server: RunningServer, *, streams: int, seconds: float, distinct: int = DISTINCT) -> Result:
    """Sends every prompt alone first, then all of them at once."""
    requests = list(itertools.islice(workload(11, max_tokens=MAX_TOKENS, hang_up_every=5), distinct))
    plain = (Ask(request.prompt, request.max_tokens) for request in requests)
    alone = asyncio.run(run_streams(server.host, server.port, plain, streams=1, count=distinct))
    answers, samples = asyncio.run(_load(server, itertools.cycle(requests), streams, seconds))
    server.until_quiet(10)
    return Result(answers, {ask.prompt: heard.text for ask, heard in alone}, samples, _held_blocks(server))


async def _load(
    server: RunningServer, requests: itertools.cycle[Ask], streams: int, seconds: float
) -> tuple[list[tuple[Ask, Heard]], list[Sample]]:
    started, samples = time.perf_counter(), list[Sample]()

    async def watch() -> None:
        while True:
            held = await asyncio.to_thread(_held_blocks, server)
            memory, threads = _resources(server.process.pid)
            samples.append(Sample(time.perf_counter() - started, memory, threads, held))
            await asyncio.sleep(0.5)

    watcher = asyncio.create_task(watch())
    answers = await run_streams(server.host, server.port, requests, streams=streams, seconds=seconds)
    watcher.cancel()
    # the streams that were under way at the end ran out one by one: that time would look like less load
    return answers, [sample for sample in samples if sample.seconds <= seconds]


def _held_blocks(server: RunningServer) -> float:
    _, text = server.ask("GET", "/metrics")
    values = dict(line.rsplit(" ", 1) for line in str(text).splitlines() if line and not line.startswith("#"))
    return float(values["mistralrs_kv_blocks"]) - float(values["mistralrs_kv_blocks_free"])


def _resources(pid: int) -> tuple[int, int]:
    """Returns resident bytes and threads of a process and of those that it started."""
    memory = threads = 0
    for process in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        memory += int(status["VmRSS"].split()[0]) * 1024
        threads += int(status["Threads"])
    return memory, threads


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    if not DEFAULT_MODEL.is_file():
        raise SystemExit("the default model is not there; make model fetches it")
    with RunningServer("--max-seqs", str(args.streams), "auto", str(DEFAULT_MODEL)) as server:
        result = drill(server, streams=args.streams, seconds=args.seconds)
    text = result.report(args.streams)
    print(text)
    if args.report:
        args.report.write_text(text)
    return 1 if result.findings() else 0


if __name__ == "__main__":
    sys.exit(main())
