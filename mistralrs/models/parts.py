"""The parts of a decoder that the loader finds in a checkpoint. Most names are those of Hugging Face."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.weight import Weight


@dataclass(frozen=True, slots=True)
class WeightKey:
    """The key of a part: its name, with its layer and expert if there are several of that name."""

    part: str
    layer: int | None = None
    expert: int | None = None


class WeightMerge(Protocol):
    """Changes parts between their file and the backend, as the merging of an adapter does."""

    @property
    def digest(self) -> bytes:
        """Hash of all that decides what is changed, and how."""
        ...

    @property
    def unties_head(self) -> bool:
        """Whether a head that is the embedding in the file becomes a matrix of its own."""
        ...

    def changes(self, key: WeightKey) -> bool:
        """Returns whether ``merged`` changes the values of this matrix; others keep their bytes."""
        ...

    def merged(self, key: WeightKey, values: memoryview) -> memoryview:
        """Returns the new float32 values (rows, columns) of a part, in the decoder's order of rows."""
        ...

    def merged_bias(self, key: WeightKey, bias: array[float] | None) -> array[float] | None:
        """Returns the float32 bias (rows,) of a matrix or norm, new or as it was; None: it has none."""
        ...

    def merged_norm(self, key: WeightKey, values: array[float]) -> array[float]:
        """Returns the float32 weight (length,) of a norm, new or as it was."""
        ...


class AdapterMixture(Protocol):
    """Adapters of which each token gets a mixture of its own, as X-LoRA's do: one in each adapter slot."""

    @property
    def digest(self) -> bytes:
        """Hash of all that decides what the mixture adds."""
        ...

    @property
    def num_adapters(self) -> int:
        """Adapters, and slots that they take."""
        ...

    @property
    def num_layers(self) -> int:
        """Places on the layer axis of scalings."""
        ...

    @property
    def scaling_layers(self) -> Mapping[WeightKey, int]:
        """The place of every part on which one of the adapters acts."""
        ...


class Parts(Protocol):
    """Named parts of a model, placed on the backend when they are requested.

    Names: ``embed_tokens``, ``norm``, ``lm_head``; in a layer ``attention_norm``, ``q_proj``, ``k_proj``, ``v_proj``,
    ``q_norm``, ``k_norm``, ``o_proj``, ``post_attention_norm``, ``ffn_norm``, ``gate_proj``, ``up_proj``,
    ``down_proj``, ``post_ffn_norm``, ``router``, and of every expert ``expert_gate_proj``, ``expert_up_proj``,
    ``expert_down_proj``.
    """

    def linears(self, names: Sequence[str], *, layer: int | None = None) -> list[Weight]:
        """Returns matrices that share an input, placed together. Raises ``LoadError`` for missing or misshapen ones."""
        ...

    def experts(self, name: str, *, layer: int) -> list[Weight]:
        """Returns this matrix of every expert."""
        ...

    def norm(self, name: str, *, layer: int | None = None) -> tuple[Buffer, Buffer | None]:
        """Returns a norm's weight and, if it has one, its bias."""
        ...


def part_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every part outside the layers, as (rows, columns) or (length,)."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens": (spec.vocab_size, spec.hidden_size),
        "norm": (spec.hidden_size,),
    }
    if not spec.tied_head:
        shapes["lm_head"] = (spec.vocab_size, spec.hidden_size)
    return shapes


def layer_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every part of a layer; the shape of an expert part is that of one expert."""
    attention, hidden = spec.attention, spec.hidden_size
    q, kv = attention.q_size, attention.kv_size
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj": (q, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
    }
    if spec.norm.before:
        shapes["attention_norm"] = (hidden,)
        if not spec.parallel:
            shapes["ffn_norm"] = (hidden,)
    if spec.norm.after:
        shapes |= {"post_attention_norm": (hidden,), "post_ffn_norm": (hidden,)}
    if attention.qk_norm != "none":
        by_head = attention.qk_norm == "head"
        shapes["q_norm"] = (attention.head_dim if by_head else q,)
        shapes["k_norm"] = (attention.head_dim if by_head else kv,)
    prefix = "expert_" if spec.moe else ""
    if spec.gated:
        shapes[f"{prefix}gate_proj"] = (spec.ffn_size, hidden)
    shapes |= {f"{prefix}up_proj": (spec.ffn_size, hidden), f"{prefix}down_proj": (hidden, spec.ffn_size)}
    if spec.moe:
        shapes["router"] = (spec.moe.experts, hidden)
    return shapes
