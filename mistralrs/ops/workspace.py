"""The buffers that a step works in and the numbers that describe it, allocated once."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from mistralrs.ops.arena import Arena, buffer, buffers_bytes
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.linear import AdapterUse
from mistralrs.ops.row_sampler import SamplingRows
from mistralrs.ops.step_uses import StepUses


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large a step can be, and the widths of a model."""

    max_tokens: int
    max_seqs: int
    max_logits: int
    max_blocks: int
    """Blocks that one sequence can have."""
    hidden: int
    q: int
    kv: int
    ffn: int
    vocab: int
    rotary: tuple[int, ...]
    """Half the rotary width of each table that the layers use."""
    kv_groups: int = 1
    """Groups of layers; each has slots and block tables of its own."""
    adapter_slots: int = 0
    """Adapters that can be in memory at once."""
    scaling_layers: int = 0
    """Places on the layer axis of ``StepArgs.scalings``; 0: steps have none."""


class Workspace:
    """Activations of a step, float32, one row a token."""

    def __init__(self, sizes: Sizes) -> None:
        tokens = sizes.max_tokens
        shapes = {
            "x": (tokens, sizes.hidden),
            "q": (tokens, sizes.q),
            "k": (tokens, sizes.kv),
            "v": (tokens, sizes.kv),
            "attended": (tokens, sizes.q),
            "ffn": (tokens, sizes.ffn),
            "projected": (tokens, sizes.hidden),
            "logits": (sizes.max_logits, sizes.vocab),
        }
        self.sizes = sizes
        rotary = [(tokens, 2, half) for half in sizes.rotary]
        self.arena = Arena(buffers_bytes(*shapes.values(), *rotary), huge_pages=True)
        self.rotary = [buffer(self.arena, *shape) for shape in rotary]
        self.x: Buffer
        self.q: Buffer
        self.k: Buffer
        self.v: Buffer
        self.attended: Buffer
        self.ffn: Buffer
        self.projected: Buffer
        self.logits: Buffer
        for name, shape in shapes.items():
            setattr(self, name, buffer(self.arena, *shape))


class StepArgs:
    """The description of a step. The arrays stay where they are; ``set`` fills them.

    Arrays are int32: ``tokens``, ``positions`` (num_tokens,), ``query_start_loc`` (num_seqs + 1,), ``seq_lens``
    (num_seqs,), ``logits_indices`` (num_logits,), and for each KV group ``slot_mapping`` (kv_groups, max_tokens) and
    ``block_tables`` (kv_groups, max_seqs, max_blocks). Blocks that lie wholly before the window are not read.
    """

    def __init__(self, sizes: Sizes) -> None:
        shapes = {
            "tokens": (sizes.max_tokens,),
            "positions": (sizes.max_tokens,),
            "slot_mapping": (sizes.kv_groups, sizes.max_tokens),
            "query_start_loc": (sizes.max_seqs + 1,),
            "seq_lens": (sizes.max_seqs,),
            "block_tables": (sizes.kv_groups, sizes.max_seqs, sizes.max_blocks),
            "logits_indices": (sizes.max_logits,),
        }
        self.sizes = sizes
        self.arena = Arena(buffers_bytes(*shapes.values()))
        self.arrays = {name: buffer(self.arena, *shape, format="i") for name, shape in shapes.items()}
        self.num_tokens = self.num_seqs = self.num_logits = 0
        self.uses: StepUses | None = None
        """The adapters that act on the tokens; None: none acts."""
        self.scalings: Buffer | None = None
        """(num_tokens, layers, adapter slots) float32 factors on the uses' weights, read through
        ``Linear.scaling_layer``; None: there are none. ``set`` leaves it as it is."""
        self.scaling_room: Buffer | None = None
        """(max_tokens, scaling_layers, adapter slots) float32, of which ``scalings`` may be the first rows; None if
        the sizes have no ``scaling_layers``."""
        if sizes.scaling_layers:
            shape = (sizes.max_tokens, sizes.scaling_layers, sizes.adapter_slots)
            self.scaling_room = buffer(Arena(buffers_bytes(shape)), *shape)
        self.sampling: SamplingRows | None = None
        """Rows of the step's logits to be sampled; None: none. ``set`` leaves them as they are, and a backend without a
        ``RowSampler`` has none."""
        self.cancel_flag = ctypes.c_int32(0)
        """Not zero: stop between two operations. May be replaced by another object between two steps."""

    def set(
        self,
        *,
        tokens: Sequence[int],
        positions: Sequence[int],
        slot_mapping: Sequence[Sequence[int]],
        query_start_loc: Sequence[int],
        seq_lens: Sequence[int],
        block_tables: Sequence[Sequence[Sequence[int]]],
        logits_indices: Sequence[int],
        adapters: Sequence[Sequence[AdapterUse]] = (),
    ) -> None:
        """Describes the next step. Raises ``ValueError`` when it does not fit the sizes.

        ``adapters``: for each sequence those that act on its tokens, in the order in which they are added; empty: none
        acts on any.
        """
        sizes = self.sizes
        if len(tokens) > sizes.max_tokens or len(seq_lens) > sizes.max_seqs or len(logits_indices) > sizes.max_logits:
            raise ValueError(f"a step of {len(tokens)} tokens, {len(seq_lens)} sequences does not fit {sizes}")
        flat = {
            "tokens": tokens,
            "positions": positions,
            "query_start_loc": query_start_loc,
            "seq_lens": seq_lens,
            "logits_indices": logits_indices,
        }
        for name, items in flat.items():
            self.arrays[name].values[: len(items)] = array("i", items)
        for group, (group_slot_mapping, group_tables) in enumerate(zip(slot_mapping, block_tables, strict=True)):
            self._set_group(group, group_slot_mapping, group_tables)
        self.num_tokens, self.num_seqs, self.num_logits = len(tokens), len(seq_lens), len(logits_indices)
        self.uses = StepUses.of(
            adapters, positions=positions, query_start_loc=query_start_loc, slots=sizes.adapter_slots
        )

    def _set_group(self, group: int, slot_mapping: Sequence[int], tables: Sequence[Sequence[int]]) -> None:
        sizes = self.sizes
        start = group * sizes.max_tokens
        self.arrays["slot_mapping"].values[start : start + len(slot_mapping)] = array("i", slot_mapping)
        values = self.arrays["block_tables"].values
        for row, table in enumerate(tables, group * sizes.max_seqs):
            start = row * sizes.max_blocks
            values[start : start + len(table)] = array("i", table)
