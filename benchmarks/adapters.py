"""Decode and prefill with LoRA adapters beside the same model without them, in turns in one run.

    python -m benchmarks.adapters MODEL.gguf [--rank 16] [--rounds 5] [--threads N]

The adapters are random and act on every matrix of every layer. Speed does not depend on their values. Prints a table;
nothing else should run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from mistralrs.engine.batch import Batch
from mistralrs.loading.pipeline import LoadPlan, Model, load
from mistralrs.models.decoder import Decoder
from mistralrs.ops.backend import Backend, resolve
from mistralrs.ops.linear import AdapterUse, Delta
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES

SLOTS = 8
PROMPT = 512
DEPTH = 64
"""Positions that decoding steps over, so that every step computes the same."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    backend = resolve("cpu", threads=args.threads).backend
    plan = LoadPlan(max_seqs=16, max_batch_tokens=PROMPT, adapter_slots=SLOTS)
    model = load(args.model, backend, plan)
    for slot in range(SLOTS):
        place_random(model.decoder, backend, slot, args.rank)
    one, each = [[AdapterUse(0)]], [[AdapterUse(slot % SLOTS)] for slot in range(16)]
    cases: dict[str, tuple[Callable[[Sequence[Sequence[AdapterUse]]], float], list[list[AdapterUse]]]] = {
        "decode, one adapter": (lambda uses: decode(model, 1, uses), one),
        f"prefill of {PROMPT}, one adapter": (lambda uses: prefill(model, uses), one),
        f"decode of 16 sequences, {SLOTS} adapters": (lambda uses: decode(model, 16, uses), each),
    }
    print(f"{args.model.name}, {backend.name}, {backend.threads} threads, rank {args.rank}, float16")
    for name, (run, uses) in cases.items():
        run(uses)
        turns = [(run(()), run(uses)) for _ in range(args.rounds)]
        base, adapted = (statistics.median(column) for column in zip(*turns, strict=True))
        ratio = statistics.median(with_ / without for without, with_ in turns)
        print(f"{name}: {1000 * base:.2f} ms without, {1000 * adapted:.2f} ms with, {ratio - 1:+.1%}")


def place_random(decoder: Decoder, backend: Backend, slot: int, rank: int) -> None:
    """Puts a random adapter on every matrix of the layers."""
    source = random.Random(slot)

    def matrix(rows: int, columns: int) -> Matrix:
        values = array("H", source.choices((0x2000, 0xA000, 0x1C00), k=rows * columns))
        return Matrix("delta", TYPES["F16"], rows, columns, memoryview(bytearray(values.tobytes())))

    pairs = {
        key: (matrix(rank, linear.weight.columns), matrix(linear.weight.rows, rank))
        for key, linear in decoder.linears.items()
        if key.layer is not None
    }
    backend.reserve(sum(backend.placed_bytes(part) for pair in pairs.values() for part in pair))
    for key, (a, b) in pairs.items():
        table = decoder.linears[key].deltas
        assert table is not None
        table.set(slot, Delta(backend.place(a), backend.place(b)))


def prefill(model: Model, uses: Sequence[Sequence[AdapterUse]]) -> float:
    """Seconds of a prompt."""
    tokens = [7 + place % 100 for place in range(PROMPT)]
    batch = Batch.of_one_sequence(
        tokens, 0, groups=model.limits.kv_groups, block_size=model.limits.block_size, logits_indices=[PROMPT - 1]
    )
    return step(model.decoder, batch, uses)


def decode(model: Model, sequences: int, uses: Sequence[Sequence[AdapterUse]], *, steps: int = 8) -> float:
    """Seconds of a step in which every sequence computes one token."""
    blocks = DEPTH // model.limits.block_size + 1
    tables = [list(range(blocks * place, blocks * (place + 1))) for place in range(sequences)]
    slot = [table[DEPTH // model.limits.block_size] * model.limits.block_size for table in tables]
    groups = range(len(model.limits.kv_groups))
    batch = Batch(
        tokens=[7] * sequences,
        positions=[DEPTH] * sequences,
        slot_mapping=[slot for _ in groups],
        query_start_loc=list(range(sequences + 1)),
        seq_lens=[DEPTH + 1] * sequences,
        block_tables=[tables for _ in groups],
        logits_indices=list(range(sequences)),
    )
    return min(step(model.decoder, batch, uses) for _ in range(steps))


def step(decoder: Decoder, batch: Batch, uses: Sequence[Sequence[AdapterUse]]) -> float:
    """Seconds of one forward pass."""
    started = time.perf_counter()
    decoder.args.set(
        tokens=batch.tokens,
        positions=batch.positions,
        slot_mapping=batch.slot_mapping,
        query_start_loc=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        block_tables=batch.block_tables,
        logits_indices=batch.logits_indices,
        adapters=uses,
    )
    decoder.forward()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
