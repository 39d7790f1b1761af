"""Runs a file that may be broken: loads it, computes a prompt, samples two tokens.

    python -m tests.soak.gguf_mutations --load tests.soak.loads:load_and_answer --report FILE

torch is imported here, so that the guarded processes that are forked later share it.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import torch

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.loading.pipeline import BLOCK_SIZE, LoadPlan, load_gguf
from mistralrs.ops.backend import resolve
from tests.buffers import tensor_of

MEMORY = 512 << 20
"""Free bytes that the memory plan is given: less than a guarded process may take."""


def load_and_answer(path: Path) -> None:
    """Loads a model and samples two tokens. Raises ``LoadError`` for a file that is refused."""
    torch.set_num_threads(1)
    backend = resolve("cpu", threads=1).backend
    with patch("mistralrs.loading.pipeline.available_bytes", return_value=MEMORY):
        model = load_gguf(path, backend, LoadPlan(max_seqs=1, max_batch_tokens=16))
    runner = ModelRunner(model.decoder, vocab_size=model.spec.vocab_size)
    limit = min(16, model.max_model_len)
    tokens = model.tokenizer.encode("The capital of France is", special=False)[: max(1, limit - 2)] or [0]
    done = 0
    for _ in range(2):
        new = tokens[done:]
        groups = model.limits.kv_groups
        batch = Batch.of_one_sequence(new, done, groups=groups, block_size=BLOCK_SIZE, logits_indices=[len(new) - 1])
        logits = tensor_of(runner.forward(batch, CancelFlag()))
        if logits.shape != (1, model.spec.vocab_size):
            raise AssertionError(f"logits of shape {tuple(logits.shape)}")
        done = len(tokens)
        if done == limit:
            return
        tokens.append(int(logits[0].nan_to_num().argmax()))
