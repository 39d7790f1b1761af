"""An architecture as data."""

from __future__ import annotations

from dataclasses import dataclass

from mistralrs.nn.rope import Rope
from mistralrs.ops.backend import Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Everything that ``build_decoder`` needs to know of a model."""

    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    """Tokens that the model was made for."""
    norm_eps: float
    rope: Rope
    activation: Activation = "silu"
    tied_head: bool = False
