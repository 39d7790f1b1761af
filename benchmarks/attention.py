"""Decode attention alone: the op over the KV of texts of given lengths, beside a plain read of as many bytes.

    python -m benchmarks.attention [--shapes SmolLM2,1.1B,7B] [--texts 1x2000,1x8000,16x2000] [--kv bf16,f16,q8_0]
                                   [--mib 192] [--rounds 9] [--threads N] [--isa ISA] [--json FILE]

A cell is one decoding step of so many texts of so many tokens each, over as many layers as make ``--mib`` MiB of KV,
more than the caches hold. A round reads as many bytes in huge pages and then runs the step; the share is the median of
the rounds' ratios, since the memory's speed changes from one second to the next. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mistralrs_kernels import cpu

from benchmarks.kernels import Limits, seconds_of
from mistralrs.ops.arena import Arena, buffer
from mistralrs.ops.backend import KvDtype, KvShape, Op, Rotary
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.native_memory import PackedKv
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace

SHAPES = {"SmolLM2": (9, 3, 64), "1.1B": (32, 4, 64), "7B": (32, 8, 128)}
"""Query heads, KV heads and the dimension of a head."""
BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    shape: str
    texts: int
    tokens: int
    kv: KvDtype
    layers: int
    gb_per_s: float
    plain_read: float
    """GB/s."""
    share: float
    """The median of the rounds' ratios of both."""

    def __str__(self) -> str:
        return (
            f"{self.shape:<7} {self.texts:>2} x {self.tokens:<5} {self.kv:<4} {self.layers:>3} layers"
            f" {self.gb_per_s:7.1f} of {self.plain_read:5.1f} GB/s {self.share:6.0%}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--texts", default="1x2000,1x8000,16x2000", help="NUMBERxTOKENS of each")
    parser.add_argument("--kv", default="bf16,f16,q8_0")
    parser.add_argument("--mib", type=float, default=192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", choices=cpu.ISAS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    backend = NativeBackend(threads=args.threads, isa=args.isa)
    print(f"{backend.name}, {backend.threads} threads, at least {args.mib:g} MiB", flush=True)
    cells = []
    for shape in args.shapes.split(","):
        for kv in args.kv.split(","):
            for texts, tokens in (map(int, pair.split("x")) for pair in args.texts.split(",")):
                cells.append(measure(backend, shape, kv, texts, tokens, mib=args.mib, rounds=args.rounds))
                print(cells[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")


def measure(
    backend: NativeBackend, name: str, kv: KvDtype, texts: int, tokens: int, *, mib: float, rounds: int
) -> Cell:
    step = DecodeStep(backend, SHAPES[name], kv, texts, tokens, least_bytes=int(mib * 2**20))
    limits = Limits(backend, step.nbytes)
    step.run()
    reads, steps = [], []
    for _ in range(rounds):
        reads.append(seconds_of(limits.read))
        steps.append(seconds_of(step.run))
    return Cell(
        shape=name,
        texts=texts,
        tokens=tokens,
        kv=kv,
        layers=step.layers,
        gb_per_s=step.nbytes / statistics.median(steps) / 1e9,
        plain_read=step.nbytes / statistics.median(reads) / 1e9,
        share=statistics.median(read / took for read, took in zip(reads, steps, strict=True)),
    )


class DecodeStep:
    """The attention of all layers for the last token of each text."""

    def __init__(
        self,
        backend: NativeBackend,
        heads: tuple[int, int, int],
        kv: KvDtype,
        texts: int,
        tokens: int,
        *,
        least_bytes: int,
    ) -> None:
        """``heads``: query heads, KV heads and the dimension of a head."""
        query_heads, kv_heads, head_dim = heads
        blocks = -(-tokens // BLOCK)
        shape = {"kv_heads": kv_heads, "head_dim": head_dim, "block_size": BLOCK}
        one = backend.kv_cache(KvShape(blocks=(1,), **shape, dtype=kv))
        self.layers = -(-least_bytes // (texts * blocks * one.block_bytes))
        cache = backend.kv_cache(KvShape(blocks=(texts * blocks,) * self.layers, **shape, dtype=kv))
        self.nbytes = cache.nbytes
        sizes = Sizes(
            max_tokens=max(BLOCK, texts), max_seqs=texts, max_logits=1, max_blocks=blocks,
            hidden=1, q=query_heads * head_dim, kv=kv_heads * head_dim, ffn=1, vocab=1, rotary=(head_dim // 2,),
        )  # fmt: skip
        work, self._args = Workspace(sizes), StepArgs(sizes)
        source = random.Random(tokens)
        for part, deviation in ((work.q, head_dim**-0.5), (work.k, 1.0), (work.v, 1.0)):
            part.values[:] = array("f", (source.gauss(0, deviation) for _ in part.values))
        self.queries = work.q.values
        # queries are rotated by nothing and scaled by 1 in place: they stay what they are, however often a step runs
        half = head_dim // 2
        work.rotary[0].values[:] = array("f", ([1.0] * half + [0.0] * half) * sizes.max_tokens)
        rotary = Rotary(buffer(Arena(4 * half + 64), half), work.rotary[0])

        def op_of(to: PackedKv, layer: int) -> Op:
            return backend.attend(
                work, to, layer=layer, group=0, heads=query_heads, kv_heads=kv_heads, head_dim=head_dim,
                scale=math.log(2), rotary=rotary,
            )  # fmt: skip

        self._set([range(BLOCK)], [[0]])
        backend.program([op_of(one, 0)], self._args)()
        for layer in cache.layers:
            layer.bytes[:] = one.export_block([0], 0) * (texts * blocks)
        tables = [list(range(text * blocks, (text + 1) * blocks)) for text in range(texts)]
        self._set([range(tokens - 1, tokens)] * texts, tables)
        self.run = backend.program([op_of(cache, layer) for layer in range(self.layers)], self._args)

    def _set(self, positions: Sequence[range], tables: Sequence[list[int]]) -> None:
        """Describes a step of texts that compute these positions, as many each."""
        count = len(positions[0])
        slots = [
            t[p // BLOCK] * BLOCK + p % BLOCK for t, of_text in zip(tables, positions, strict=True) for p in of_text
        ]
        self._args.set(
            tokens=[0] * len(slots),
            positions=[p for of_text in positions for p in of_text],
            slot_mapping=[slots],
            query_start_loc=range(0, len(slots) + 1, count),
            seq_lens=[of_text[-1] + 1 for of_text in positions],
            block_tables=[tables],
            logits_indices=[],
        )


if __name__ == "__main__":
    main()
