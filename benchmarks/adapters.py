"""Decode and prefill with LoRA adapters beside the same model without them, in turns in one run.

    python -m benchmarks.adapters MODEL.gguf [--rank 16] [--rounds 5] [--threads N] [--llamacpp PY]

The adapters are random and act on every matrix of every layer. Speed does not depend on their values. PY is a Python
that has llama-cpp-python: llama.cpp then does the same in the same rounds with such an adapter, as a GGUF file, beside
its own base. Prints a table; nothing else should run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.lora_by_llamacpp import LlamaCppWithLora
from benchmarks.random_adapters import random_adapter, random_matrix
from mistralrs.adapters.lora.gguf_lora_writer import write_gguf_lora
from mistralrs.engine.batch import Batch
from mistralrs.loading.pipeline import LoadPlan, Model, load
from mistralrs.models.decoder import Decoder
from mistralrs.ops.backend import Backend, resolve
from mistralrs.ops.linear import AdapterUse, Delta

SLOTS = 8
PROMPT = 512
DEPTH = 64
"""Positions that decoding steps over, so that every step computes the same."""
STEPS = 8
"""Steps of which the fastest counts."""
DECODE, PREFILL = "decode, one adapter", f"prefill of {PROMPT}, one adapter"

Case = Callable[[bool], float]
"""Seconds of a case, with adapters or without."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--llamacpp", metavar="PY", help="a Python that has llama-cpp-python")
    args = parser.parse_args()
    backend = resolve("cpu", threads=args.threads).backend
    plan = LoadPlan(max_seqs=16, max_batch_tokens=PROMPT, adapter_slots=SLOTS)
    model = load(args.model, backend, plan)
    for slot in range(SLOTS):
        place_random(model.decoder, backend, slot, args.rank)
    print(f"{args.model.name}, {backend.name}, {backend.threads} threads, rank {args.rank}, float16")
    if args.llamacpp is None:
        compare(ours(model), args.rounds)
        return
    with llamacpp(args.llamacpp, model, args.model, rank=args.rank, threads=backend.threads) as peer:
        compare({**ours(model), **theirs(peer)}, args.rounds)


def ours(model: Model) -> dict[str, Case]:
    one, each = [[AdapterUse(0)]], [[AdapterUse(slot % SLOTS)] for slot in range(16)]
    return {
        DECODE: lambda acts: decode(model, 1, one if acts else ()),
        PREFILL: lambda acts: prefill(model, one if acts else ()),
        f"decode of 16 sequences, {SLOTS} adapters": lambda acts: decode(model, 16, each if acts else ()),
    }


def theirs(peer: LlamaCppWithLora) -> dict[str, Case]:
    return {
        f"llama.cpp, {DECODE}": lambda acts: peer.decode(acts=acts, steps=STEPS),
        f"llama.cpp, {PREFILL}": lambda acts: peer.prefill(acts=acts),
    }


@contextmanager
def llamacpp(python: str, model: Model, path: Path, *, rank: int, threads: int) -> Iterator[LlamaCppWithLora]:
    """Runs llama.cpp with the model and an adapter of this rank."""
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "random.gguf"
        written = random_adapter(model.spec, "random", rank=rank, seed=0)
        write_gguf_lora(written, adapter, architecture=model.architecture, spec=model.spec)
        with LlamaCppWithLora(python, path, adapter, threads=threads, prompt=PROMPT, depth=DEPTH) as peer:
            yield peer


def compare(cases: dict[str, Case], rounds: int) -> None:
    """Prints the medians of each case without and with adapters, and the median of their ratios."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for run in cases.values():
        run(True)
    for _ in range(rounds):
        for name, run in cases.items():
            turns[name].append((run(False), run(True)))
    for name, found in turns.items():
        base, adapted = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = statistics.median(with_ / without for without, with_ in found)
        print(f"{name}: {1000 * base:.2f} ms without, {1000 * adapted:.2f} ms with, {ratio - 1:+.1%}")


def place_random(decoder: Decoder, backend: Backend, slot: int, rank: int) -> None:
    """Puts a random adapter on every matrix of the layers."""
    source = random.Random(slot)
    pairs = {
        key: (random_matrix(source, rank, linear.weight.columns), random_matrix(source, linear.weight.rows, rank))
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


def decode(model: Model, sequences: int, uses: Sequence[Sequence[AdapterUse]]) -> float:
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
    return min(step(model.decoder, batch, uses) for _ in range(STEPS))


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
