"""Decode and prefill with X-LoRA beside the same model without adapters, in turns in one run.

    python -m benchmarks.xlora MODEL.gguf [--adapters 4] [--rank 16] [--rounds 5] [--threads N]

The adapters are random and act on every matrix of every layer; the classifier is one linear with an output for each
adapter and matrix. Speed does not depend on their values. Prints a table; nothing else should run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.adapters import DEPTH, PROMPT
from benchmarks.random_adapters import random_adapter
from mistralrs.adapters.xlora.xlora import XLora
from mistralrs.adapters.xlora.xlora_classifier import Affine, XLoraClassifier
from mistralrs.adapters.xlora.xlora_config import XLoraConfig
from mistralrs.adapters.xlora.xlora_executor import XLoraExecutor
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.model_executor import ModelExecutor
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.engine.sequence import ExecutorState
from mistralrs.loading.pipeline import LoadPlan, Model, load
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import resolve
from mistralrs.ops.torch_threads import limit_torch_here

NON_GRANULAR = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    backend = resolve("cpu", threads=args.threads).backend
    limit_torch_here(backend.torch_threads)
    found: list[XLora] = []

    def mixture(architecture: str, spec: DecoderSpec) -> XLora:
        found.append(random_xlora(spec, adapters=args.adapters, rank=args.rank))
        return found[0]

    model = load(args.model, backend, LoadPlan(max_seqs=16, max_batch_tokens=PROMPT, mixture=mixture))
    plain = ModelRunner(model.decoder, vocab_size=model.spec.vocab_size)
    granular, kept = (
        XLoraExecutor(
            model.decoder,
            found[0],
            backend,
            vocab_size=model.spec.vocab_size,
            in_half_precision=True,
            non_granular_index=index,
        )
        for index in (None, NON_GRANULAR)
    )
    cases: dict[str, tuple[Callable[[ModelExecutor], float], ModelExecutor]] = {
        "decode": (lambda executor: decode(executor, model, 1), granular),
        "decode, scalings kept": (lambda executor: decode(executor, model, 1), kept),
        "decode of 16 sequences": (lambda executor: decode(executor, model, 16), granular),
        f"prefill of {PROMPT}": (lambda executor: prefill(executor, model), granular),
    }
    print(f"{args.model.name}, {backend.name}, {backend.threads} threads, {args.adapters} adapters, rank {args.rank}")
    for name, (run, executor) in cases.items():
        run(executor)
        turns = [(run(plain), run(executor)) for _ in range(args.rounds)]
        base, mixed = (statistics.median(column) for column in zip(*turns, strict=True))
        ratio = statistics.median(with_ / without for without, with_ in turns)
        print(f"{name}: {1000 * base:.2f} ms without, {1000 * mixed:.2f} ms with, {ratio:.2f} times")


def random_xlora(spec: DecoderSpec, *, adapters: int, rank: int) -> XLora:
    """Random adapters on every matrix of the layers; a layer axis of these."""
    names = tuple(str(number) for number in range(adapters))
    made = tuple(random_adapter(spec, name, rank=rank, seed=seed) for seed, name in enumerate(names))
    matrices = made[0].deltas
    config = XLoraConfig(
        path=Path("random"), layout="package", adapters=names, hidden_size=spec.hidden_size, layerwise_scalings=True
    )
    outputs = adapters * len(matrices)
    last = Affine(torch.randn(outputs, spec.hidden_size) / spec.hidden_size**0.5, torch.zeros(outputs))
    return XLora(
        source="random",
        adapters=made,
        classifier=XLoraClassifier(config, [last], num_layers=len(matrices)),
        layers=tuple(map(str, matrices)),
        scaling_layers={key: place for place, key in enumerate(matrices)},
        digest=bytes(16),
    )


def prefill(executor: ModelExecutor, model: Model) -> float:
    """Seconds of a prompt."""
    tokens = [7 + place % 100 for place in range(PROMPT)]
    limits = model.limits
    return step(
        executor,
        Batch.of_one_sequence(
            tokens, 0, groups=limits.kv_groups, block_size=limits.block_size, logits_indices=[PROMPT - 1]
        ),
    )


def decode(executor: ModelExecutor, model: Model, sequences: int, *, steps: int = 8) -> float:
    """Seconds of a step in which every sequence computes one token, the second after its prompt."""
    size = model.limits.block_size
    blocks = DEPTH // size + 1
    tables = [list(range(blocks * place, blocks * (place + 1))) for place in range(sequences)]
    groups = range(len(model.limits.kv_groups))
    states = [ExecutorState(DEPTH - NON_GRANULAR) for _ in range(sequences)]

    def batch(position: int) -> Batch:
        slots = [table[position // size] * size + position % size for table in tables]
        return Batch(
            tokens=[7] * sequences,
            positions=[position] * sequences,
            slot_mapping=[slots for _ in groups],
            query_start_loc=list(range(sequences + 1)),
            seq_lens=[position + 1] * sequences,
            block_tables=[tables for _ in groups],
            logits_indices=list(range(sequences)),
            states=states,
        )

    step(executor, batch(DEPTH - 1))  # whose scalings are kept
    return min(step(executor, batch(DEPTH)) for _ in range(steps))


def step(executor: ModelExecutor, batch: Batch) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    executor.forward(replace(batch), CancelFlag())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
