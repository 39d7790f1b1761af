"""An architecture as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mistralrs.nn.rope import Rope
from mistralrs.ops.backend import Activation, Temperature


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The settings of one layer in which layers differ."""

    window: int = 0
    """A position attends to itself and to the window - 1 before it; 0: to all before it."""
    rope: int | None = 0
    """An index into ``AttentionSpec.ropes``; None: this layer has no rotary embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """The attention of every layer. A projection has a bias if the checkpoint has one."""

    num_heads: int
    kv_heads: int
    head_dim: int
    ropes: tuple[Rope, ...]
    """The rotary embeddings that layers choose from."""
    scale: float | None = None
    """Factor on the scores; None: head_dim ** -0.5."""
    softcap: float = 0.0
    """Scores become softcap * tanh(score / softcap); 0: no soft cap."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """The norm of q and k before rotation: of each head by itself, or of all heads as one row."""
    temperature: Temperature | None = None
    """The scale on queries by their position."""

    @property
    def q_size(self) -> int:
        """Returns the width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Returns the width of all key heads, which is also that of all value heads."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSpec:
    """The norms of every layer, and the one before the head."""

    eps: float
    kind: Literal["rms", "layer"] = "rms"
    place: Literal["before", "after", "both"] = "before"
    """The place of the norms in attention and feed-forward: at the input, at the output before it is added, or both."""

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
    """Experts that each token is routed to."""
    normalize_weights: bool = True
    """The weights of a token's experts are divided by their sum (``norm_topk_prob``)."""


@dataclass(frozen=True, slots=True)
class LongContext:
    """A longer context than ``max_position``, for which the first rotary embedding divides by other factors."""

    max_position: int
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """All settings of a model that ``build_decoder`` reads."""

    layers: tuple[LayerSpec, ...]
    hidden_size: int
    ffn_size: int
    """The width of the feed-forward; of one expert where there are experts."""
    vocab_size: int
    max_position: int
    """The context in tokens that the model is made for."""
    long_context: LongContext | None = None
    attention: AttentionSpec
    norm: NormSpec
    moe: MoeSpec | None = None
    activation: Activation = "silu"
    gated: bool = True
    """The feed-forward computes act(gate) * up; False: act(up)."""
    parallel: bool = False
    """Attention and feed-forward read the same normed input."""
    tied_head: bool = False
    """The head's weight is the embedding's."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """Factor on the output of attention and feed-forward before it is added."""
    logits_multiplier: float = 1.0
    logits_softcap: float = 0.0
    """Logits become softcap * tanh(logit / softcap) after they are multiplied; 0: no soft cap."""

    def for_context(self, length: int | None) -> DecoderSpec:
        """Returns the spec for a context of ``length`` tokens at most; None: of ``max_position``.

        A length beyond ``max_position`` selects the factors of ``long_context``, also for the positions before.
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
        """Returns the layers' windows in ascending order; each makes a KV group."""
        return tuple(sorted({layer.window for layer in self.layers}))
