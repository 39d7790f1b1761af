"""Runs a decoder with X-LoRA in front of the engine: each step is a scaling pass, the classifier, and the full pass.

Buehler and Buehler, X-LoRA (arXiv:2402.07148), section 2. A token's scalings depend on the tokens before it alone, so
that chunks, batches and reused blocks give the same bits as a prompt that is computed alone and whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from mistralrs.adapters.adapter_placement import AdapterPlacement
from mistralrs.adapters.xlora.xlora import XLora
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.model_runner import ModelRunner, describe_step
from mistralrs.errors import UsageError
from mistralrs.models.decoder import Decoder
from mistralrs.ops.backend import Backend
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.linear import AdapterUse
from mistralrs.ops.row_sampler import SamplingRows


@dataclass(frozen=True, slots=True)
class _Part:
    """The tokens of one sequence in a step."""

    sequence: int
    start: int
    """Index of the first in the batch."""
    granular: int
    """Leading ones with scalings of their own, from the scaling pass."""
    stop: int


class XLoraExecutor:
    """The engine's ``ModelExecutor`` of a decoder that was built with an X-LoRA's scaling layers.

    The two passes have a KV cache each, under the same block tables. Non-granular scalings are kept in the sequence's
    ``ExecutorState``; the engine must know of them: ``EngineConfig.shared_answer_tokens`` is ``non_granular_index``.
    """

    def __init__(
        self,
        decoder: Decoder,
        xlora: XLora,
        backend: Backend,
        *,
        vocab_size: int,
        in_half_precision: bool,
        non_granular_index: int | None = None,
    ) -> None:
        """Places the adapters in the decoder's slots.

        ``in_half_precision``: as of ``AdapterPlacement``. ``non_granular_index``: generated tokens after which the
        scalings of the last one are used for all later tokens, without a scaling pass; 0: those of the prompt's last
        token; None: each token has its own.
        Raises ``UsageError`` for an index below 0, and ``LoadError`` as ``AdapterPlacement.prepare`` does.
        """
        if non_granular_index is not None and non_granular_index < 0:
            raise UsageError(
                f"tgt_non_granular_index is {non_granular_index}; it must be at least 0",
                hint="it counts generated tokens; 0 keeps the scalings of the prompt's last token",
            )
        if decoder.scaling_pass is None or decoder.args.scaling_room is None:
            raise ValueError("the decoder was built without a scaling pass")
        self._decoder, self._scaling = decoder, decoder.scaling_pass
        self._runner = ModelRunner(decoder, vocab_size=vocab_size)
        self.vocab_size = vocab_size
        self._classifier = xlora.classifier
        self._non_granular_index = non_granular_index
        self._room = decoder.args.scaling_room
        """The scalings of a step, which the full pass reads."""
        self._scalings = _tensor(self._room)  # (max_tokens, layers, adapters)
        self._first_rows = lru_cache(maxsize=256)(partial(self._room.rows, 0))
        self._row_bytes = len(self._room.rows(0, 1).span.bytes)
        config = xlora.classifier.config
        self._uses = _uses(xlora.num_adapters, config.global_scaling_weight)
        self._dummy_uses = _uses(xlora.num_adapters, config.global_scaling_weight * config.scaling_pass_value)
        placement = AdapterPlacement(decoder, backend, in_half_precision=in_half_precision)
        for slot, adapter in enumerate(xlora.adapters):
            placement.write(slot, placement.prepare(adapter))

    def forward(self, batch: Batch, cancel_flag: CancelFlag, sampling: SamplingRows | None = None) -> Buffer:
        """float32 logits of the full pass, as ``ModelRunner.forward``.

        Raises ``ValueError`` for a batch with adapters of its own.
        """
        if any(batch.adapters):
            raise ValueError("requests cannot choose adapters beside X-LoRA")
        parts = list(self._parts(batch))
        own = None
        if any(part.granular for part in parts):
            own = self._own_scalings(batch, parts, cancel_flag)
        if not cancel_flag.is_set():
            self._fill(batch, parts, own)
            self._decoder.args.scalings = self._first_rows(len(batch.tokens))
        mixed = replace(batch, adapters=[self._uses] * len(batch.seq_lens))
        return self._runner.forward(mixed, cancel_flag, sampling)

    @property
    def logits_buffer(self) -> Buffer:
        """As ``ModelRunner.logits_buffer``."""
        return self._runner.logits_buffer

    def scalings(self, start: int, stop: int) -> Buffer:
        """float32 (stop - start, layers of the axis, adapters): the scalings of these tokens of the last step, without
        ``global_scaling_weight``; a view that is valid until the next one."""
        return self._room.rows(start, stop)

    def hidden(self, start: int, stop: int) -> Buffer:
        """float32 (stop - start, hidden size): final hidden states of the full pass, normed, of these tokens of the
        last step."""
        return self._runner.hidden(start, stop)

    def export_block(self, group: int, block: int) -> bytes:
        """The bytes of a block in all layers of a KV group, of the full pass and then of the scaling pass."""
        layers = self._decoder.kv_layers[group]
        return self._decoder.kv.export_block(layers, block) + self._scaling.kv.export_block(layers, block)

    def import_block(self, group: int, block: int, data: bytes) -> None:
        """Writes the bytes that ``export_block`` returned into a block. Raises ValueError if their length is wrong."""
        if len(data) % 2:
            raise ValueError(f"{len(data)} bytes are not the blocks of two passes")
        layers, half = self._decoder.kv_layers[group], len(data) // 2
        self._decoder.kv.import_block(layers, block, data[:half])
        self._scaling.kv.import_block(layers, block, data[half:])

    def _parts(self, batch: Batch) -> Iterator[_Part]:
        """The sequences' tokens, split where their scalings stop to be their own."""
        bounds = zip(batch.query_start_loc[:-1], batch.query_start_loc[1:], strict=True)
        for sequence, (start, stop) in enumerate(bounds):
            granular = stop - start
            if self._non_granular_index is not None:
                last = self._last_granular(batch, sequence)
                granular = min(granular, max(last + 1 - batch.positions[start], 0))
            yield _Part(sequence, start, granular, stop)

    def _last_granular(self, batch: Batch, sequence: int) -> int:
        """The position of a sequence's last token with scalings of its own."""
        assert self._non_granular_index is not None
        return batch.states[sequence].num_prompt + self._non_granular_index - 1

    @torch.inference_mode()
    def _own_scalings(self, batch: Batch, parts: list[_Part], cancel_flag: CancelFlag) -> Tensor:
        """The scalings (tokens, layers, adapters) of all granular tokens, one sequence after the other."""
        granular = _granular_batch(batch, parts, self._dummy_uses)
        args, count = self._decoder.args, len(granular.tokens)
        args.scalings = None
        describe_step(args, granular, cancel_flag)
        self._scaling.forward()
        # The full pass works in the same buffers: the states are read before it.
        return self._classifier.scalings(_tensor(self._decoder.hidden(0, count)))

    def _fill(self, batch: Batch, parts: list[_Part], own: Tensor | None) -> None:
        """Writes the scalings of the step's tokens, and keeps or takes those of sequences that are not granular.

        Those that were kept are written without torch, whose calls took 0.15 ms of each step.
        """
        row, room, size = 0, self._room.span.bytes, self._row_bytes
        for part in parts:
            middle = part.start + part.granular
            if own is not None and part.granular:
                self._scalings[part.start : middle] = own[row : row + part.granular]
                row += part.granular
            if self._non_granular_index is None:
                continue
            state = batch.states[part.sequence]
            last = self._last_granular(batch, part.sequence)
            if part.granular and batch.positions[middle - 1] == last:
                state.kept = bytes(room[(middle - 1) * size : middle * size])
            if middle < part.stop:
                if not isinstance(state.kept, bytes):
                    raise RuntimeError(f"the scalings of position {last} were not computed")
                room[middle * size : part.stop * size] = state.kept * (part.stop - middle)


def _uses(adapters: int, weight: float) -> list[AdapterUse]:
    """All adapters with this weight; with 0 they add nothing, and the plain path does."""
    return [AdapterUse(slot, weight) for slot in range(adapters)] if weight else []


def _granular_batch(batch: Batch, parts: list[_Part], uses: list[AdapterUse]) -> Batch:
    """The batch of the granular tokens, without logits."""
    chosen = Batch([], [], [[] for _ in batch.slot_mapping], [0], [], [[] for _ in batch.block_tables], [])
    for part in parts:
        if not part.granular:
            continue
        tokens = slice(part.start, part.start + part.granular)
        chosen.tokens.extend(batch.tokens[tokens])
        chosen.positions.extend(batch.positions[tokens])
        chosen.query_start_loc.append(len(chosen.tokens))
        chosen.seq_lens.append(chosen.positions[-1] + 1)
        chosen.adapters.append(uses)
        for slots, of_batch in zip(chosen.slot_mapping, batch.slot_mapping, strict=True):
            slots.extend(of_batch[tokens])
        for tables, of_batch_tables in zip(chosen.block_tables, batch.block_tables, strict=True):
            tables.append(of_batch_tables[part.sequence])
    return chosen


def _tensor(buffer: Buffer) -> Tensor:
    """The buffer's memory as a tensor."""
    return torch.frombuffer(buffer.span.bytes, dtype=torch.float32).view(buffer.shape)
