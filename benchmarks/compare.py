"""Compares engines on GGUF files, in turns: prefill, decode at depths, batches, load, first token and memory.

    python -m benchmarks.compare MODEL.gguf... [--quick] [--rounds 3] [--threads 2] [--llamacpp PY] [--openvino PY]
        [--ik-llamacpp PY] [--mistralrs PY] [--mistralrs-tokens N] [--ik-llama-bench BINARY]
        [--out docs/reports/compare]

Each PY is a Python in which that engine is installed. A round starts every engine twice, with the file dropped from
memory and with the file there, and then runs the cells: each cell in all engines, one after the other, since memory may
be fast in one minute and slow in the next. Where not all engines have room for the file at once, an engine runs all
cells before the next one starts. Writes OUT.json after each round and OUT.md at the end: medians, spread, and our
median over the fastest other one. Started again with the same OUT, it goes on where it was interrupted: what was
measured is kept, what failed is tried again.
``--quick`` has fewer cells: pp512, tg128 and 16 sequences; files over 3 GB get two rounds and 32 decoded tokens, and
mistral.rs, which reads prompts as slowly as it decodes, at most 128 tokens, unless ``--mistralrs-tokens`` says
otherwise. The table marks figures of fewer tokens than their cell has.
BINARY is a `llama-bench` of ik_llama.cpp, which decodes one sequence only and loads the file for each cell.

Each cell of ours is shown beside the limit of the machine, measured before and after the cell: decode of one
sequence beside the plain read of memory in huge pages, prompts and batches beside that, shared by all their tokens, or
the peak of int8 products, whichever takes longer. Attention is not counted. An answer takes seconds, so the read is an
average over a second before and a second after it, and not the best of them, which is shown too.
Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.kernels import Limits
from benchmarks.roofline import TokenCost, token_cost
from mistralrs.ops.native_backend import NativeBackend

WORKER = Path(__file__).with_name("compare_worker.py")
CELLS = ("pp128", "pp512", "pp2048", "tg128", "tg128@2000", "tg128@8000", "b1", "b4", "b16", "b32")
QUICK_CELLS = ("pp512", "tg128", "b16")
QUICK_TOKENS = 128
"""Of prompts and answers of mistral.rs with ``--quick``, at most."""
ORDER = ("ours", "llama.cpp", "OpenVINO", "ik_llama.cpp", "mistral.rs", "ik_llama.cpp's llama-bench")
LARGE_BYTES = 3 << 30
COPIES = 3.5
"""Times the file's size that the hungriest engine takes."""
PAUSE_S = 0.2
"""Between two engines: threads of the one before may still look for work."""
PROBED_BYTES = 1 << 30
"""Memory of the plain read: of a quarter of it, caches of 32 MiB still give a twentieth."""
READ_S = 1.0
"""Of plain reads before a cell, and after it."""
VARIED = 1.15
"""Plain reads that differ more than that are of memory with two speeds."""
FIGURES = {
    "first_token_s": "start to first token, s",
    "cold_first_token_s": "start to first token, cold, s",
    "load_s": "load, warm, s",
    "cold_load_s": "load, cold, s",
    "peak_bytes": "peak memory, MB",
}
"""Measured beside the cells; less is better."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine, the Python that runs it, and variables that it needs."""

    name: str
    python: str
    variables: Mapping[str, str]
    longest: int | None = None
    """Tokens of its prompts and answers at most; None: as many as the cell has."""


def main() -> None:
    args = arguments()
    peers = list(peers_of(args))
    store = args.out.with_suffix(".json")
    records: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    limits = Limits(NativeBackend(threads=args.threads), PROBED_BYTES)
    for path in args.models:
        is_large = path.stat().st_size > LARGE_BYTES
        rounds = min(args.rounds, 2) if args.quick and is_large else args.rounds
        cells: tuple[str, ...] = QUICK_CELLS if args.quick else CELLS
        if args.quick and is_large:
            cells = tuple(cell.replace("tg128", "tg32") for cell in cells)
        for number in range(rounds):
            key = {"file": path.name, "round": number, "threads": args.threads}
            missing = [peer for peer in peers if not is_done(records, key | {"engine": peer.name}, cells)]
            print(f"{path.name}: round {number + 1} of {rounds}, {len(missing)} engines", file=sys.stderr, flush=True)
            groups = [missing] if missing and fit(path, len(missing)) else [[peer] for peer in missing]
            for together in groups:
                known = {"bytes": path.stat().st_size, "cost": asdict(token_cost(path))}
                for peer, figures in zip(together, measured(together, path, cells, limits, args), strict=True):
                    own = key | {"engine": peer.name}
                    records = [each for each in records if not own.items() <= each.items()] + [own | known | figures]
                write(store, json.dumps(records, indent=1))
    write(args.out.with_suffix(".md"), "\n".join(report(records)))


def write(path: Path, text: str) -> None:
    """Replaces a file as a whole, so that an interruption leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    news = path.with_name(path.name + ".new")
    news.write_text(text + "\n", encoding="utf-8")
    news.replace(path)


def is_done(records: Sequence[dict[str, Any]], key: dict[str, Any], cells: Sequence[str]) -> bool:
    return any(
        key.items() <= record.items() and set(cells) <= record["cells"].keys() and not record.get("error")
        for record in records
    )


def fit(path: Path, engines: int) -> bool:
    """Whether so many engines have room for a file at once."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return engines * path.stat().st_size * COPIES < memory * 0.6


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=lambda text: Path(text).resolve(), nargs="+")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for a load or a cell of one engine")
    parser.add_argument("--out", type=Path, default=Path("docs/reports/compare"))
    for name in ("llamacpp", "openvino", "ik-llamacpp", "mistralrs"):
        parser.add_argument(f"--{name}", metavar="PY")
    parser.add_argument("--mistralrs-tokens", type=int, metavar="N", help="at most so many in its prompts and answers")
    parser.add_argument("--ik-llama-bench", metavar="BINARY")
    args = parser.parse_args()
    if args.quick and args.mistralrs_tokens is None:
        args.mistralrs_tokens = QUICK_TOKENS
    return args


def peers_of(args: argparse.Namespace) -> Iterator[Peer]:
    yield Peer("ours", sys.executable, {"PYTHONPATH": str(WORKER.parents[1])})
    for name, python in zip(ORDER[1:4], (args.llamacpp, args.openvino, args.ik_llamacpp), strict=True):
        if python:
            yield Peer(name, python, {})
    if args.mistralrs:
        yield Peer(ORDER[4], args.mistralrs, {}, args.mistralrs_tokens)
    if args.ik_llama_bench:
        yield Peer(ORDER[5], sys.executable, {"LLAMA_BENCH": args.ik_llama_bench})


def measured(
    peers: Sequence[Peer], path: Path, cells: Sequence[str], limits: Limits, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The figures of engines in one round, each cell in all of them before the next. An engine that fails has the end
    of its errors instead."""
    results: list[dict[str, Any]] = []
    for peer in peers:
        cold = launched(peer, path, (), args, forget=True)
        results.append({f"cold_{name}": cold.get(name) for name in ("load_s", "first_token_s")})
    bounds: list[dict[str, list[float]]] = [{} for _ in peers]
    with ExitStack() as stack:
        running = [stack.enter_context(Running(peer, path, args, widest=widest_of(cells))) for peer in peers]
        for cell in cells:
            for engine, found in zip(running, bounds, strict=True):
                time.sleep(PAUSE_S)
                before = bounds_of(limits)
                engine.run(cell)
                found[cell] = [statistics.mean(pair) for pair in zip(before, bounds_of(limits), strict=True)]
        for engine, found, result in zip(running, bounds, results, strict=True):
            result |= engine.end() | {"limits": found}
            names = ("plain_read", "int8_peak", "best_read")
            result |= {
                name: statistics.median(each)
                for name, each in zip(names, zip(*found.values(), strict=True), strict=True)
            }
    return results


def bounds_of(limits: Limits) -> tuple[float, float, float]:
    """Bytes/s of the plain read on average, int8 products/s, and bytes/s of the best read."""
    read = limits.sustained_read(READ_S)
    best, peak = limits.measure()
    return 1e9 * read, 1e9 * peak, 1e9 * max(read, best)


def widest_of(cells: Sequence[str]) -> int:
    """Sequences of the largest batch."""
    return max((int(cell[1:]) for cell in cells if cell.startswith("b")), default=1)


def launched(
    peer: Peer, path: Path, cells: Sequence[str], args: argparse.Namespace, *, forget: bool = False
) -> dict[str, Any]:
    """The figures of one process. ``forget``: the file is dropped from the page cache first. It is read before that, so
    that caches below, of a host or a disk, have it for the first engine too."""
    if forget:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 23):
                pass
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with Running(peer, path, args, widest=widest_of(cells)) as engine:
        for cell in cells:
            engine.run(cell)
        return engine.end()


class Running:
    """A process of an engine that has loaded a file, and runs cells. One that fails runs no further ones. A context
    manager, at whose end it is gone: it would wait for cells, and its reader for it."""

    def __init__(self, peer: Peer, path: Path, args: argparse.Namespace, *, widest: int) -> None:
        self._peer, self._timeout = peer, args.timeout
        self._result: dict[str, Any] = {"cells": {}}
        self._errors: list[str] = []
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | dict(peer.variables)
        command = [peer.python, str(WORKER), peer.name, str(path), str(args.threads), str(widest)]
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
        )
        self._reader = threading.Thread(target=lambda: self._errors.extend(self._process.stderr or ()), daemon=True)
        self._reader.start()
        # it must be at rest before another engine is measured
        while (news := self._next()) and "ready" not in news:
            self._result |= news | {"first_token_s": time.perf_counter() - started}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def run(self, cell: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended: its exit code and its errors say why
            self._process.stdin.write(f"{cell}:{self._peer.longest}\n" if self._peer.longest else f"{cell}\n")
            self._process.stdin.flush()
        news = self._next()
        self._result["cells"][cell] = news.get("tokens_s")
        if "of" in news:
            self._result.setdefault("shortened", {})[cell] = news["of"]

    def end(self) -> dict[str, Any]:
        """Ends it. Returns all of its figures."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._result |= self._next()
        code = self._process.wait()
        self._reader.join()
        if code:
            self._result["error"] = f"exit code {code}: " + "".join(self._errors)[-500:]
            print(f"{self._peer.name} failed: {self._result['error']}", file=sys.stderr)
        return self._result

    def _next(self) -> dict[str, Any]:
        """Its next line; nothing if it ended, or took too long and was ended."""
        timer = threading.Timer(self._timeout, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if line.startswith("{"):  # others are what engines print by themselves
                    news: dict[str, Any] = json.loads(line)
                    return news
            return {}
        finally:
            timer.cancel()


def report(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of the table of each file."""
    yield "# Engines beside each other"
    yield ""
    yield f"`python -m benchmarks.compare`, {platform.machine()}, {os.cpu_count()} processors. Tokens a second, medians"
    yield "of the rounds and in brackets the least and the most; the ratio is our median over the fastest other's."
    for name, threads in dict.fromkeys((record["file"], record["threads"]) for record in records):
        own = [record for record in records if (record["file"], record["threads"]) == (name, threads)]
        engines = sorted({record["engine"] for record in own}, key=ORDER.index)
        ours = [record for record in own if record["engine"] == "ours"] or own  # without ours, others' limits are shown
        read, peak = (statistics.median(record[limit] for record in ours) for limit in ("plain_read", "int8_peak"))
        rounds = len({record["round"] for record in own})
        yield from ("", f"## {name}", "")
        best = statistics.median(best_read(record) for record in ours)
        limits = f"plain read {read / 1e9:.1f} GB/s (best {best / 1e9:.1f}), int8 peak {peak / 1e9:.0f} GMAC/s"
        yield f"{threads} threads; {limits}; rounds: {rounds}."
        yield ""
        yield "| | " + " | ".join(engines) + " | ratio | share of the limit |"
        yield "| --- |" + " --- |" * (len(engines) + 2)
        cost = TokenCost(**own[0]["cost"])
        for cell in sorted({cell for record in own for cell in record["cells"]}, key=place_of):
            values = {each: [r["cells"].get(cell) for r in own if r["engine"] == each] for each in engines}
            share = share_text(cell, [r for r in own if r["engine"] == "ours" and r["cells"].get(cell)], cost)
            marks = {r["engine"]: f" with {r['shortened'][cell]} tokens" for r in own if cell in r.get("shortened", {})}
            yield row(cell, values, share=share, marks=marks)
        for figure, title in FIGURES.items():
            scale = 1e-6 if figure == "peak_bytes" else 1.0
            found = {each: [r.get(figure) for r in own if r["engine"] == each] for each in engines}
            if any(each for values in found.values() for each in values):
                yield row(title, {each: [v and v * scale for v in found[each]] for each in engines}, is_time=True)
        for cell in sorted({cell for record in own for cell in record["cells"] if cell.startswith("tg")}, key=place_of):
            yield from by_round(cell, own, engines)
        yield from (f"\n{r['engine']}: {r['error'].strip().splitlines()[-1]}" for r in own if r.get("error"))


def best_read(record: dict[str, Any]) -> float:
    """In bytes/s. Older comparisons have no other read."""
    return float(record.get("best_read", record["plain_read"]))


def share_text(cell: str, records: Sequence[dict[str, Any]], cost: TokenCost) -> str:
    """The share of the limit; decode's share of the best read too."""
    shares = []
    for record in records:
        usual = record["plain_read"], record["int8_peak"], best_read(record)
        read, peak, best = record.get("limits", {}).get(cell, usual)
        times = (least_time(cell, cost, read=each, peak=peak) for each in (read, best))
        shares.append([record["cells"][cell] * seconds for seconds in times])
    if not shares:
        return ""
    share, of_best = (statistics.median(each) for each in zip(*shares, strict=True))
    return f"{share:.0%} ({of_best:.0%} of the best read)" if cell.startswith("tg") else f"{share:.0%}"


def by_round(cell: str, records: Sequence[dict[str, Any]], engines: Sequence[str]) -> Iterator[str]:
    """A table of the rounds of a decode cell, if memory was not as fast in all of them: medians mix its speeds."""
    shown: dict[tuple[int, str], str] = {}
    reads: list[float] = []
    for record in records:
        if record["cells"].get(cell) and cell in record.get("limits", {}):
            reads.append(record["limits"][cell][0])
            shown[record["round"], record["engine"]] = f"{number_text(record['cells'][cell])} [{reads[-1] / 1e9:.0f}]"
    if not reads or max(reads) < VARIED * min(reads):
        return
    yield from ("", f"{cell} by rounds, beside each figure the plain read around it, GB/s:", "")
    yield "| round | " + " | ".join(engines) + " |"
    yield "| --- |" + " --- |" * len(engines)
    for number in sorted({number for number, _ in shown}):
        yield f"| {number + 1} | " + " | ".join(shown.get((number, each), "-") for each in engines) + " |"


def place_of(cell: str) -> tuple[int, int, int]:
    """Sorts cells: prompts, decode by depth, batches."""
    kind = ("pp", "tg", "b").index(cell.partition("@")[0].rstrip("0123456789"))
    length, _, depth = cell.lstrip("ptgb").partition("@")
    return kind, int(depth or 0), int(length)


def least_time(cell: str, cost: TokenCost, *, read: float, peak: float) -> float:
    """Seconds that a token of a cell takes at the limit of the machine that bounds it."""
    if cell.startswith("tg") or cell == "b1":
        return cost.bytes / read
    tokens = int(cell.lstrip("pb"))
    macs = cost.prefill_macs(tokens) if cell.startswith("pp") else cost.decode_macs
    return max(cost.bytes / read / tokens, macs / peak)


def row(
    title: str,
    values: Mapping[str, Sequence[float | None]],
    *,
    share: str = "",
    marks: Mapping[str, str] | None = None,
    is_time: bool = False,
) -> str:
    """A line of the table. ``marks``: text behind the figure of an engine."""
    texts = {each: cell_text([value for value in found if value]) for each, found in values.items()}
    shown = [text if text == "-" else text + (marks or {}).get(each, "") for each, text in texts.items()]
    others = [middle(values[each]) for each in values if each != "ours" and any(values[each])]
    ratio = ""
    if others and any(values["ours"]):
        ratio = f"{middle(values['ours']) / (min(others) if is_time else max(others)):.2f}"
    return f"| {title} | " + " | ".join(shown) + f" | {ratio} | {share} |"


def cell_text(values: Sequence[float]) -> str:
    if not values:
        return "-"
    digits = digits_of(statistics.median(values))
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def number_text(value: float) -> str:
    return f"{value:.{digits_of(value)}f}"


def digits_of(value: float) -> int:
    return 1 if value >= 10 else 2


def middle(values: Sequence[float | None]) -> float:
    return statistics.median(value for value in values if value)


if __name__ == "__main__":
    main()
