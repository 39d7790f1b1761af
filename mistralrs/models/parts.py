"""What the decoder asks the loader for. Names are those of a decoder, not of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.arena import Buffer
from mistralrs.ops.weight import Weight


class Parts(Protocol):
    """Named parts of a model, placed on the backend when they are asked for.

    Names: ``embedding``, ``norm``, ``head``; in a layer ``attention_norm``, ``q``, ``k``, ``v``, ``output``,
    ``ffn_norm``, ``gate``, ``up``, ``down``.
    """

    def linears(self, names: Sequence[str], *, layer: int | None = None) -> list[Weight]:
        """Matrices that read the same input, placed together. Raises ``LoadError`` for a missing or misshapen one."""
        ...

    def vector(self, name: str, *, layer: int | None = None) -> Buffer:
        """A float32 vector."""
        ...


LAYER_PARTS = ("attention_norm", "q", "k", "v", "output", "ffn_norm", "gate", "up", "down")


def part_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every part, as (rows, columns) or (length,)."""
    hidden, q, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    return {
        "embedding": (spec.vocab_size, hidden),
        "norm": (hidden,),
        "head": (spec.vocab_size, hidden),
        "attention_norm": (hidden,),
        "q": (q, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "output": (hidden, q),
        "ffn_norm": (hidden,),
        "gate": (spec.ffn_size, hidden),
        "up": (spec.ffn_size, hidden),
        "down": (hidden, spec.ffn_size),
    }
