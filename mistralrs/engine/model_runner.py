"""Runs a decoder on the engine's batches."""

from __future__ import annotations

from functools import lru_cache, partial

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.models.decoder import Decoder
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.row_sampler import SamplingRows
from mistralrs.ops.workspace import StepArgs


class ModelRunner:
    """The engine's view of a decoder. ``vocab_size`` leaves out padded rows of the embedding, which have no token."""

    scalings: None = None
    """It mixes no adapters by token."""

    def __init__(self, decoder: Decoder, *, vocab_size: int) -> None:
        self._decoder = decoder
        self.vocab_size = vocab_size
        self._first_logits = lru_cache(maxsize=256)(partial(decoder.logits.rows, 0))

    @property
    def logits_buffer(self) -> Buffer:
        """float32 (max_logits, columns), of which each pass writes the first rows."""
        return self._decoder.logits

    def forward(self, batch: Batch, cancel_flag: CancelFlag, sampling: SamplingRows | None = None) -> Buffer:
        """float32 logits (len(batch.logits_indices), columns), a view that is valid until the next call.

        The columns from ``vocab_size`` on are those of padded rows, which readers leave out. ``sampling``: rows of
        ``logits_buffer`` that are sampled in the same call.
        """
        describe_step(self._decoder.args, batch, cancel_flag, sampling=sampling)
        self._decoder.forward()
        return self._first_logits(len(batch.logits_indices))

    def export_block(self, group: int, block: int) -> bytes:
        """The bytes of a block in all layers of a KV group."""
        return self._decoder.kv.export_block(self._decoder.kv_layers[group], block)

    def import_block(self, group: int, block: int, data: bytes) -> None:
        """Writes the bytes that ``export_block`` returned into a block. Raises ValueError if their length is wrong."""
        self._decoder.kv.import_block(self._decoder.kv_layers[group], block, data)

    def hidden(self, start: int, stop: int) -> Buffer:
        """float32 (stop - start, hidden size): the final hidden states, normed, of these tokens of the last step."""
        return self._decoder.hidden(start, stop)


def describe_step(
    args: StepArgs, batch: Batch, cancel_flag: CancelFlag, *, sampling: SamplingRows | None = None
) -> None:
    """Fills the arguments of the decoder's next step from a batch."""
    args.set(
        tokens=batch.tokens,
        positions=batch.positions,
        slot_mapping=batch.slot_mapping,
        query_start_loc=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        block_tables=batch.block_tables,
        logits_indices=batch.logits_indices,
        adapters=batch.adapters if any(batch.adapters) else (),
    )
    args.sampling = sampling
    args.cancel_flag = cancel_flag.flag
