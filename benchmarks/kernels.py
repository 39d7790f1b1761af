"""Products alone: every storage type with 1 to 512 tokens, beside what memory and the int8 units of this machine give.

    python -m benchmarks.kernels [--types Q4_K,Q6_K] [--tokens 1,16,512] [--mib 64] [--columns 2048] [--seconds 0.3]
                                 [--threads N] [--isa ISA] [--json FILE]

A cell is one matrix of ``--mib`` MiB, more than the caches hold, times so many tokens, in GB/s of packed weights and in
GMAC/s; with more than 32 tokens the matrix has at most 4,096 rows. The two limits are measured before every cell in the
same process: the plain read of as many bytes in huge pages, and int8 products of operands in registers.
The larger of the two shares says how far a cell is from what bounds it. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mistralrs_kernels import cpu

from mistralrs.models.decoder import PRECISIONS
from mistralrs.ops.arena import Arena, buffer, buffers_bytes
from mistralrs.ops.linear import Linear
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.native_program import Pool
from mistralrs.ops.weight import Matrix
from mistralrs.ops.workspace import Sizes, StepArgs
from mistralrs.quant.types import TYPES

FLOATS = {"F32": "f", "F16": "e"}
NAMES = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
TOKENS = (1, 2, 4, 8, 16, 32, 512)
MANY = 32
"""Tokens above which ``ROWS`` rows are enough."""
ROWS = 4096
OUTLIERS = PRECISIONS["default"].outlier_threshold
ROUNDS = 200_000
"""Of the probe of int8 products: some milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    type: str
    tokens: int
    gb_per_s: float
    plain_read: float
    """GB/s."""
    gmac_per_s: float
    int8_peak: float
    """GMAC/s."""

    @property
    def share(self) -> float:
        """Of the limit that is nearer."""
        return max(self.gb_per_s / self.plain_read, self.gmac_per_s / self.int8_peak)

    def __str__(self) -> str:
        return (
            f"{self.type:<5} M={self.tokens:<4} {self.gb_per_s:7.1f} of {self.plain_read:5.1f} GB/s"
            f" {self.gmac_per_s:8.1f} of {self.int8_peak:6.1f} GMAC/s {self.share:6.0%}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(NAMES))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--mib", type=float, default=64)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a cell's measurement takes at least")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", choices=cpu.ISAS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    backend = NativeBackend(threads=args.threads, isa=args.isa)
    print(f"{backend.name}, {backend.threads} threads, {args.columns} columns, {args.mib:g} MiB", flush=True)
    limits = Limits(backend, int(args.mib * 2**20))
    cells = []
    for name in args.types.split(","):
        for tokens in map(int, args.tokens.split(",")):
            rows = rows_of(name, tokens, columns=args.columns, nbytes=limits.nbytes)
            run, nbytes = product(backend, name, tokens, rows=rows, columns=args.columns)
            read, peak = limits.measure()
            seconds = median_seconds(run, args.seconds)
            macs = rows * args.columns * tokens
            cells.append(
                Cell(
                    type=name,
                    tokens=tokens,
                    gb_per_s=nbytes / seconds / 1e9,
                    plain_read=read,
                    gmac_per_s=macs / seconds / 1e9,
                    int8_peak=peak,
                )
            )
            print(cells[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps([{**asdict(cell), "share": cell.share} for cell in cells], indent=1) + "\n")


class Limits:
    """What the machine gives at the moment."""

    def __init__(self, backend: NativeBackend, nbytes: int) -> None:
        self.nbytes = nbytes
        self._probe = cpu.tables()[backend.isa].probe
        self._pool = Pool(backend.threads)
        self._memory = Arena(nbytes, huge_pages=True).take(nbytes)
        for page in range(0, nbytes, 4096):  # memory that was never written is one page of zeros
            self._memory.bytes[page] = 1

    def read(self) -> None:
        """Reads all bytes once."""
        self._probe(self._memory.address, self.nbytes, 0, self._pool.pointer)

    def measure(self) -> tuple[float, float]:
        """GB/s of the plain read and GMAC/s of int8 products, each the best of five."""
        pool = self._pool.pointer
        reads = [seconds_of(self.read) for _ in range(5)]
        products = [seconds_of(lambda: self._probe(None, 0, ROUNDS, pool)) for _ in range(5)]
        macs = self._probe(None, 0, ROUNDS, pool)
        return self.nbytes / min(reads) / 1e9, macs / min(products) / 1e9

    def sustained_read(self, seconds: float) -> float:
        """GB/s of plain reads one after the other, on average over ``seconds``."""
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.read()
            count += 1
        return count * self.nbytes / (time.perf_counter() - started) / 1e9


def rows_of(name: str, tokens: int, *, columns: int, nbytes: int) -> int:
    """Rows of a matrix of about ``nbytes`` bytes, a multiple of 16."""
    rows = max(16, nbytes // TYPES[name].row_bytes(columns) // 16 * 16)
    return min(rows, ROWS) if tokens > MANY else rows


def product(
    backend: NativeBackend, name: str, tokens: int, *, rows: int, columns: int
) -> tuple[Callable[[], None], int]:
    """A call that multiplies a matrix of type ``name`` with ``tokens`` rows, and the bytes of its packed weights."""
    matrix = random_matrix(backend, name, rows=rows, columns=columns)
    nbytes = backend.placed_bytes(matrix)
    backend.reserve(nbytes)
    weight = backend.place(matrix)
    arena = Arena(buffers_bytes((tokens, columns), (tokens, rows)), huge_pages=True)
    x, out = buffer(arena, tokens, columns), buffer(arena, tokens, rows)
    source = random.Random(tokens)
    x.values[:] = array("f", (source.gauss() for _ in range(tokens * columns)))
    op = backend.project([Linear(weight)], x, [out], outlier_threshold=OUTLIERS)
    return backend.program([op], step(tokens)), nbytes


def random_matrix(backend: NativeBackend, name: str, *, rows: int, columns: int) -> Matrix:
    """Sixteen rows of random weights, repeated; speed does not depend on their values."""
    source = random.Random(columns)
    weights = array("f", (source.gauss(0, columns**-0.5) for _ in range(16 * columns)))
    type_ = TYPES[name]
    if name == "BF16":
        some = b"".join(struct.pack("f", weight)[2:] for weight in weights)
    elif name in FLOATS:
        some = struct.pack(f"{len(weights)}{FLOATS[name]}", *weights)
    else:
        some = bytes(backend.quantize(name, type_, memoryview(weights).cast("B").cast("f", (16, columns))))
    data = bytearray(some * -(-rows // 16))[: rows * type_.row_bytes(columns)]
    return Matrix(name, type_, rows, columns, memoryview(data))


def step(tokens: int) -> StepArgs:
    """A step of so many tokens, for an op that reads nothing else."""
    args = StepArgs(
        Sizes(
            max_tokens=tokens, max_seqs=1, max_logits=1, max_blocks=1,
            hidden=1, q=1, kv=1, ffn=1, vocab=1, rotary=(),
        )
    )  # fmt: skip
    places = list(range(tokens))
    args.set(
        tokens=[0] * tokens,
        positions=places,
        slot_mapping=[places],
        query_start_loc=[0, tokens],
        seq_lens=[tokens],
        block_tables=[[[0]]],
        logits_indices=[],
    )
    return args


def median_seconds(run: Callable[[], None], least: float) -> float:
    """The median of as many calls as take ``least`` seconds, three at least, after one that is not counted."""
    run()
    found: list[float] = []
    while len(found) < 3 or sum(found) < least:
        found.append(seconds_of(run))
    return statistics.median(found)


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
