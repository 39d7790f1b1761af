"""What the decoder asks the loader for. Names are those of a decoder, not of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.weight import Weight


class Parts(Protocol):
    """Named parts of a model, placed on the backend when they are asked for.

    Names: ``embedding``, ``norm``, ``head``; in a layer ``attention_norm``, ``q``, ``k``, ``v``, ``q_norm``,
    ``k_norm``, ``output``, ``post_attention_norm``, ``ffn_norm``, ``gate``, ``up``, ``down``, ``post_ffn_norm``,
    ``router``, and of every expert ``expert_gate``, ``expert_up``, ``expert_down``.
    """

    def linears(self, names: Sequence[str], *, layer: int | None = None) -> list[Weight]:
        """Matrices that read the same input, placed together. Raises ``LoadError`` for a missing or misshapen one."""
        ...

    def experts(self, name: str, *, layer: int) -> list[Weight]:
        """That matrix of every expert."""
        ...

    def norm(self, name: str, *, layer: int | None = None) -> tuple[Buffer, Buffer | None]:
        """A norm's weight and, if it has one, its bias."""
        ...


def part_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every part outside the layers, as (rows, columns) or (length,)."""
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (spec.vocab_size, spec.hidden_size),
        "norm": (spec.hidden_size,),
    }
    if not spec.tied_head:
        shapes["head"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def layer_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every part of a layer; of the expert parts, that of one expert."""
    hidden, q, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (hidden,),
        "q": (q, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "output": (hidden, q),
    }
    if spec.qk_norm:
        shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    if spec.post_norms:
        shapes |= {"post_attention_norm": (hidden,), "post_ffn_norm": (hidden,)}
    if not spec.parallel:
        shapes["ffn_norm"] = (hidden,)
    prefix = "expert_" if spec.experts else ""
    if spec.gated:
        shapes[f"{prefix}gate"] = (spec.ffn_size, hidden)
    shapes |= {f"{prefix}up": (spec.ffn_size, hidden), f"{prefix}down": (hidden, spec.ffn_size)}
    if spec.experts:
        shapes["router"] = (spec.experts, hidden)
    return shapes
