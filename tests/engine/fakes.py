"""A small model and a tokenizer for tests of the engine.

The model's logits are a function of the tokens and positions that it reads back from its own paged memory; a wrong
slot, position or block table, or a block that was freed too early, therefore changes the answer.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from struct import iter_unpack, pack

import torch

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.engine import Engine
from mistralrs.ops.buffer import Buffer
from tests.buffers import buffer_of

VOCAB = 96
SIZE = 12
"""Size of the fake's hidden states."""
EOS = 0


class FakeTokenizer:
    """Letters, halves of two-byte characters, and the control token 0 that ends a text."""

    vocab_size = VOCAB
    bos_id = None
    eos_ids = frozenset({EOS})
    add_bos = False
    space_prefix = False
    quick_bytes = 0

    def prepare(self) -> None:
        """Does nothing: the tokenizer needs no preparation."""

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


def history_logits(history: list[tuple[int, int]], *, eos_bias: float, habit: float = 0.0) -> torch.Tensor:
    """Returns (VOCAB,) logits from (token, position) pairs; ``eos_bias`` is added to the end token's.

    ``habit``: the weight of a part that depends on the last token alone, which makes texts repeat themselves.
    """
    logits = _noise(b"".join(pack("<qq", *pair) for pair in history)) * 2
    if habit:
        logits += _noise(pack("<q", history[-1][0])) * habit
    logits[EOS] += eos_bias
    return logits


def _noise(data: bytes) -> torch.Tensor:
    seed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") % 2**62
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


class FakeRunner:
    """Computes ``history_logits`` of the tokens in each KV group's window, through a paged memory.

    ``before`` is called at the start of every pass. An adapter that acts on a token marks its position, in the memory
    too, with what is in its slot.
    """

    vocab_size = VOCAB
    scalings: None = None
    logits_buffer: None = None

    def __init__(
        self, *, block_size: int, windows: Sequence[int] = (0,), eos_bias: float = -100.0, habit: float = 0.0
    ) -> None:
        self.block_size = block_size
        self.eos_bias = eos_bias
        self.habit = habit
        self.windows = windows
        self.memory: list[dict[int, tuple[int, int]]] = [{} for _ in windows]
        self.batches: list[Batch] = []
        self.slots: dict[int, bytes] = {}
        self._positions: list[int] = []  # of the last batch, marked
        self.before: Callable[[Batch, CancelFlag], None] = lambda batch, cancel_flag: None

    def forward(self, batch: Batch, cancel_flag: CancelFlag, sampling: None = None) -> Buffer:
        """``logits`` with columns of padding that a reader must leave out: larger than all others."""
        return buffer_of(torch.nn.functional.pad(self.logits(batch, cancel_flag), (0, 5), value=1e6))

    def hidden(self, start: int, stop: int) -> Buffer:
        return buffer_of(self.states(start, stop))

    def logits(self, batch: Batch, cancel_flag: CancelFlag) -> torch.Tensor:
        self.batches.append(batch)
        self.before(batch, cancel_flag)
        assert batch.query_start_loc[-1] == len(batch.tokens) == len(batch.positions)
        self._positions = self._marked(batch)
        for memory, slots in zip(self.memory, batch.slot_mapping, strict=True):
            assert len(set(slots)) == len(slots), "two tokens share a slot"
            memory.update(zip(slots, zip(batch.tokens, self._positions, strict=True), strict=True))
        rows: list[torch.Tensor] = []
        for index, length in enumerate(batch.seq_lens):
            start, end = batch.query_start_loc[index : index + 2]
            assert batch.positions[start:end] == list(range(length - (end - start), length))
            counts = [batch.positions[row] + 1 for row in batch.logits_indices if start <= row < end]
            rows.extend(self._logits(self._seen(batch, index, count)) for count in counts)
        assert len(rows) == len(batch.logits_indices)
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)

    def states(self, start: int, stop: int) -> torch.Tensor:
        """Returns a vector for each token, which depends on the token and its position alone."""
        batch = self.batches[-1]
        pairs = zip(batch.tokens[start:stop], self._positions[start:stop], strict=True)
        return torch.stack([history_logits([pair], eos_bias=0.0)[:SIZE] for pair in pairs])

    def export_block(self, group: int, block: int) -> bytes:
        slots = range(block * self.block_size, (block + 1) * self.block_size)
        return b"".join(pack("<qq", *self.memory[group][slot]) for slot in slots)

    def import_block(self, group: int, block: int, data: bytes) -> None:
        pairs = list(iter_unpack("<qq", data))
        if len(pairs) != self.block_size:
            raise ValueError(f"{len(pairs)} tokens in a block")
        self.memory[group].update({block * self.block_size + place: (a, b) for place, (a, b) in enumerate(pairs)})

    def _marked(self, batch: Batch) -> list[int]:
        """The positions, each with a mark of the adapters that act there above its lower 32 bits."""
        positions = list(batch.positions)
        for index, uses in enumerate(batch.adapters):
            for row in range(*batch.query_start_loc[index : index + 2]):
                acting = [use for use in uses if use.first_position <= batch.positions[row]]
                if acting:
                    marks = b"".join(self.slots[use.slot] + pack("<d", use.weight) for use in acting)
                    positions[row] += int.from_bytes(hashlib.blake2b(marks, digest_size=3).digest(), "little") << 32
        return positions

    def _logits(self, seen: list[tuple[int, int]]) -> torch.Tensor:
        return history_logits(seen, eos_bias=self.eos_bias, habit=self.habit)

    def _seen(self, batch: Batch, index: int, count: int) -> list[tuple[int, int]]:
        """Returns the (token, position) pairs that the last of ``count`` tokens attends to, group by group."""
        size = self.block_size
        seen = []
        for window, memory, tables in zip(self.windows, self.memory, batch.block_tables, strict=True):
            positions = range(max(0, count - window) if window else 0, count)
            seen += [memory[tables[index][p // size] * size + p % size] for p in positions]
        return seen


def after_each_step(engine: Engine, call: Callable[[], None]) -> None:
    """Has the engine's thread make a call after each of its steps."""
    step = engine._core.step

    def step_and_call() -> None:
        step()
        call()

    engine._core.step = step_and_call  # type: ignore[method-assign]


class Turnstile:
    """Blocks the engine in ``forward`` until a test releases it, so that the test can act in the middle of a step."""

    def __init__(self, runner: FakeRunner) -> None:
        self.entered = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)
        runner.before = self._pass

    def _pass(self, batch: Batch, cancel_flag: CancelFlag) -> None:
        self.entered.release()
        for _ in range(6000):
            if self.leave.acquire(timeout=0.01) or cancel_flag.is_set():
                return
        raise TimeoutError("the step was never let through")

    def wait(self) -> None:
        """Waits until the engine is in the middle of a step."""
        assert self.entered.acquire(timeout=60)

    def let_through(self, steps: int = 1) -> None:
        self.leave.release(steps)
