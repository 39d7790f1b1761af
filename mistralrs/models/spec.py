"""An architecture as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mistralrs.nn.rope import Rope
from mistralrs.ops.backend import Activation, Temperature


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The settings in which one layer differs from another."""

    window: int = 0
    """A position sees itself and window - 1 before it; 0: all."""
    rope: int | None = 0
    """An index into ``AttentionSpec.ropes``; None: this layer rotates nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """The attention of every layer. A projection has a bias where the checkpoint has one."""

    num_heads: int
    kv_heads: int
    head_dim: int
    ropes: tuple[Rope, ...]
    """The rotary embeddings that layers choose from."""
    scale: float | None = None
    """Factor on the scores; None: head_dim ** -0.5."""
    softcap: float = 0.0
    """Scores become softcap * tanh(score / softcap); 0: they do not."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """Whether q and k are normed before they are rotated: each head by itself, or all heads as one row."""
    temperature: Temperature | None = None
    """How queries grow with their position."""

    @property
    def q_size(self) -> int:
        """The width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """The width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """The norms of every layer, and the one before the head."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    place: Literal["before", "after", "both"] = "before"
    """Whether attention and feed-forward norm their input, their output before it is added, or both."""

    @property
    def before(self) -> bool:
        return self.place != "after"

    @property
    def after(self) -> bool:
        return self.place != "before"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """A mixture of experts in place of every layer's feed-forward."""

    experts: int
    experts_used: int
    """Experts that each token is given."""
    normalize_weights: bool = True
    """Whether the weights of a token's experts are divided by their sum (``norm_topk_prob``)."""


@dataclass(frozen=True, slots=True)
class LongContext:
    """A longer context than ``max_position``, for which the first rotary embedding divides by other factors."""

    max_position: int
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Everything that ``build_decoder`` needs to know of a model."""

    layers: tuple[LayerSpec, ...]
    hidden_size: int
    ffn_size: int
    """The width of the feed-forward; of one expert where there are experts."""
    vocab_size: int
    max_position: int
    """Tokens that the model was made for."""
    long_context: LongContext | None = None
    attention: AttentionSpec
    norm: NormSpec
    moe: MoeSpec | None = None
    activation: Activation = "silu"
    gated: bool = True
    """Feed-forward act(gate) * up; False: act(up)."""
    parallel: bool = False
    """Attention and feed-forward read the same normed input."""
    tied_head: bool = False
    """The rows of the embedding are those of the head."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """Factor on the output of attention and feed-forward before it is added."""
    logits_multiplier: float = 1.0
    logits_softcap: float = 0.0
    """Logits become softcap * tanh(logit / softcap) after they are multiplied; 0: they do not."""

    def for_context(self, length: int | None) -> DecoderSpec:
        """The spec for a context of ``length`` tokens at most; None: of ``max_position``.

        A length beyond ``max_position`` takes the factors of ``long_context``, also for the positions before.
        """
        long = self.long_context
        if length is None or (length > self.max_position and long is None):
            return self
        if long is None or length <= self.max_position:
            return replace(self, max_position=length)
        first, *others = self.attention.ropes
        attention = replace(self.attention, ropes=(replace(first, factors=long.factors), *others))
        return replace(self, max_position=min(length, long.max_position), attention=attention)

    @property
    def windows(self) -> tuple[int, ...]:
        """The windows that layers have, ascending: each makes a KV group."""
        return tuple(sorted({layer.window for layer in self.layers}))
