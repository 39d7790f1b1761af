"""An architecture as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mistralrs.nn.rope import Rope
from mistralrs.ops.backend import Activation


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What sets one layer apart from another."""

    window: int = 0
    """A position sees itself and window - 1 before it; 0: all."""
    rope: int | None = 0
    """Which of the decoder's rotary embeddings; None: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Everything that ``build_decoder`` needs to know of a model."""

    layers: tuple[LayerSpec, ...]
    hidden_size: int
    ffn_size: int
    num_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    """Tokens that the model was made for."""
    norm_eps: float
    ropes: tuple[Rope, ...]
    norm: Literal["rms", "layer"] = "rms"
    activation: Activation = "silu"
    gated: bool = True
    """Feed-forward act(gate) * up; False: act(up)."""
    parallel: bool = False
    """Attention and feed-forward read the same normed input."""
    post_norms: bool = False
    """What attention and feed-forward yield is normed before it is added."""
    qk_norm: bool = False
    """q and k are normed, head by head, before they are rotated."""
    tied_head: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """None: head_dim ** -0.5."""
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    experts: int = 0
    """0: no mixture of experts."""
    experts_used: int = 0

    @property
    def windows(self) -> tuple[int, ...]:
        """Those that layers have, ascending: each makes a KV group."""
        return tuple(sorted({layer.window for layer in self.layers}))
