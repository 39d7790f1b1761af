"""A model and a tokenizer small enough to see through, for tests of the engine.

The model's logits are a function of the tokens and positions that it reads back from its own paged memory, so that a
wrong slot, position, block table or a block that was given away too early changes the answer.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from struct import pack

import torch

from mistralrs.engine.batch import Abort, Batch

VOCAB = 96
EOS = 0


class FakeTokenizer:
    """Letters, halves of two-byte characters, and the control token 0 that ends a text."""

    vocab_size = VOCAB
    bos_id = None
    eos_ids = frozenset({EOS})
    add_bos = False
    space_prefix = False

    def token_bytes(self, token: int) -> bytes:
        if token == EOS:
            return b""
        if token < 8:
            return b"\xc3"
        if token < 16:
            return bytes([0xA0 + token])
        return bytes([ord("a") + token % 13])

    def token_text(self, token: int) -> str:
        return "<end>" if token == EOS else self.token_bytes(token).decode("utf-8", "replace")


def history_logits(history: list[tuple[int, int]], *, eos_bias: float) -> torch.Tensor:
    """(VOCAB,) logits from (token, position) pairs; ``eos_bias`` is added to the end token's."""
    digest = hashlib.blake2b(b"".join(pack("<qq", *pair) for pair in history), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") % 2**62
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 2
    logits[EOS] += eos_bias
    return logits


class FakeRunner:
    """Computes ``history_logits`` through a paged memory. ``before`` is called at the start of every pass."""

    vocab_size = VOCAB

    def __init__(self, *, block_size: int, eos_bias: float = -100.0) -> None:
        self.block_size = block_size
        self.eos_bias = eos_bias
        self.memory: dict[int, tuple[int, int]] = {}
        self.batches: list[Batch] = []
        self.before: Callable[[Batch, Abort], None] = lambda batch, abort: None

    def forward(self, batch: Batch, abort: Abort) -> torch.Tensor:
        self.batches.append(batch)
        self.before(batch, abort)
        assert len(set(batch.slots)) == len(batch.slots), "two tokens share a slot"
        assert batch.seq_starts[-1] == len(batch.tokens) == len(batch.positions) == len(batch.slots)
        for slot, pair in zip(batch.slots, zip(batch.tokens, batch.positions, strict=True), strict=True):
            self.memory[slot] = pair
        rows = []
        for index, table in enumerate(batch.block_tables):
            start, end = batch.seq_starts[index : index + 2]
            length = batch.context_lens[index]
            assert batch.positions[start:end] == list(range(length - (end - start), length))
            if end - 1 in batch.logit_rows:
                slots = [table[p // self.block_size] * self.block_size + p % self.block_size for p in range(length)]
                rows.append(history_logits([self.memory[slot] for slot in slots], eos_bias=self.eos_bias))
        assert len(rows) == len(batch.logit_rows)
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)


class Turnstile:
    """Holds the engine in ``forward`` until it is let through, so that a test can act in the middle of a step."""

    def __init__(self, runner: FakeRunner) -> None:
        self.entered = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)
        runner.before = self._pass

    def _pass(self, batch: Batch, abort: Abort) -> None:
        self.entered.release()
        for _ in range(1000):
            if self.leave.acquire(timeout=0.01) or abort.is_set():
                return
        raise TimeoutError("nobody let the step through")

    def wait(self) -> None:
        """Until the engine is in the middle of a step."""
        assert self.entered.acquire(timeout=10)

    def let_through(self, steps: int = 1) -> None:
        self.leave.release(steps)
