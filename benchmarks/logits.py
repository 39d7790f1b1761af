"""Writes the logits of every position of a token sequence, computed with the runner, batches and kernels of a chat.

    python benchmarks/logits.py MODEL.gguf IDS.json OUT.npy [--precision high] [--isa NAME]

OUT: float32 (len(ids), vocabulary). Prints which backend served.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.loading.kv_dtype import ChosenKvDtype
from mistralrs.loading.pipeline import BLOCK_SIZE, LoadPlan, Model, load_gguf
from mistralrs.ops.backend import resolve

CHUNK = 64
PRECISIONS = ("fast", "default", "high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=PRECISIONS, default="default")
    parser.add_argument("--isa", help="an instruction set of the kernels, or torch")
    args = parser.parse_args()

    backend = resolve("cpu", isa=args.isa).backend
    model = load_gguf(args.model, backend, plan_of(args.precision))
    ids: list[int] = json.loads(args.ids.read_text())
    np.save(args.out, np.concatenate(list(logits_of(model, ids))))
    facts = {"served_by": backend.name, "threads": backend.threads, "precision": args.precision, "positions": len(ids)}
    print(json.dumps(facts))


def plan_of(precision: str, kv_cache_dtype: ChosenKvDtype = "auto") -> LoadPlan:
    return LoadPlan(max_seqs=1, max_batch_tokens=512, precision=precision, kv_cache_dtype=kv_cache_dtype)


def logits_of(model: Model, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Yields the logits of the next positions of a sequence, (positions, vocabulary)."""
    runner = ModelRunner(model.decoder, vocab_size=model.spec.vocab_size)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        groups, wanted = model.limits.kv_groups, list(range(len(part)))
        batch = Batch.of_one_sequence(part, start, groups=groups, block_size=BLOCK_SIZE, logits_indices=wanted)
        logits = runner.forward(batch, CancelFlag())
        yield np.array(logits.values).reshape(logits.shape)[:, : runner.vocab_size]


if __name__ == "__main__":
    main()
