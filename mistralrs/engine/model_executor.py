"""The interface of a model that the engine runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.row_sampler import SamplingRows


class ModelExecutor(Protocol):
    """The interface of a model that the engine runs. The engine's thread alone calls it."""

    @property
    def vocab_size(self) -> int:
        """Ids from here on have no logits."""
        ...

    @property
    def scalings(self) -> Callable[[int, int], Buffer] | None:
        """float32 (stop - start, layers, adapters) for ``start`` and ``stop``: the weights with which adapters were
        mixed for these tokens of the last batch, valid until the next one. None: it does not mix adapters by token."""

    @property
    def logits_buffer(self) -> Buffer | None:
        """float32 (most rows, vocab_size or more), whose first rows are the logits of each forward pass; None: it
        samples no rows."""

    def forward(self, batch: Batch, cancel_flag: CancelFlag, sampling: SamplingRows | None = None) -> Buffer:
        """float32 logits (len(batch.logits_indices), vocab_size or more), valid until the next call.

        ``sampling``: rows of ``logits_buffer`` that are sampled in the same call of the library.
        Once ``cancel_flag`` is set it returns soon, with undefined values; the step is then dropped.
        """

    def hidden(self, start: int, stop: int) -> Buffer:
        """float32 (stop - start, hidden size): final hidden states, normed, of these tokens of the last batch."""

    def export_block(self, group: int, block: int) -> bytes:
        """The bytes of a block in all layers of a KV group."""

    def import_block(self, group: int, block: int, data: bytes) -> None:
        """Writes the bytes that ``export_block`` returned into a block; raises ValueError if their length is wrong."""
