"""Gemma 1, 2 and 3 (text). Norm weights are stored minus one in Hugging Face folders and whole in GGUF files."""

from __future__ import annotations

from typing import Any

from mistralrs.models import gguf_form, hf_form
from mistralrs.models.architecture import Architecture, Facts, Form, Piece, Pieces
from mistralrs.models.spec import DecoderSpec, LayerSpec
from mistralrs.nn.rope import Rope
from mistralrs.ops.backend import Activation

_PATTERN = 6
"""Gemma 3: every sixth layer sees everything."""


def _activation(facts: Facts) -> Activation:
    """``hidden_activation`` wins; what ``hidden_act`` calls gelu is the tanh approximation here."""
    return hf_form.activation(facts.get("hidden_activation", str, default=None) or "gelu_pytorch_tanh")


def _scaled(hidden: int) -> dict[str, Any]:
    return {"embedding_scale": hidden**0.5}


def _gemma_hf(facts: Facts) -> DecoderSpec:
    more = _scaled(facts.require("hidden_size", int))
    return hf_form.read_spec(facts, activation=_activation(facts), head_dim=facts.require("head_dim", int), **more)


def _gemma_gguf(facts: Facts) -> DecoderSpec:
    more = _scaled(facts.require("gemma.embedding_length", int))
    return gguf_form.read_spec(facts, "gemma", activation="gelu_tanh", **more)


def _alternating(sliding: tuple[bool, ...], window: int, *, local_rope: int = 0) -> tuple[LayerSpec, ...]:
    return tuple(LayerSpec(window, local_rope) if yes else LayerSpec() for yes in sliding)


def _every_other(count: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(count))


def _all_but_sixth(count: int, pattern: int = _PATTERN) -> tuple[bool, ...]:
    return tuple((i + 1) % pattern != 0 for i in range(count))


def _gemma2_hf(facts: Facts) -> DecoderSpec:
    sliding = hf_form.windows(facts, _every_other(facts.require("num_hidden_layers", int)))
    return hf_form.read_spec(
        facts,
        layers=_alternating(sliding, facts.require("sliding_window", int)),
        activation=_activation(facts),
        post_norms=True,
        attention_scale=facts.require("query_pre_attn_scalar", float) ** -0.5,
        attention_softcap=facts.get("attn_logit_softcapping", float, default=None) or 0.0,
        final_softcap=facts.get("final_logit_softcapping", float, default=None) or 0.0,
        **_scaled(facts.require("hidden_size", int)),
    )


def _gemma2_gguf(facts: Facts) -> DecoderSpec:
    count = facts.require("gemma2.block_count", int)
    hidden, heads = facts.require("gemma2.embedding_length", int), facts.require("gemma2.attention.head_count", int)
    # the 27B model alone, which has 46 layers, scales by its width instead of its heads' length
    scale = (hidden / heads) ** -0.5 if count == 46 and heads > 0 else None
    return gguf_form.read_spec(
        facts,
        "gemma2",
        layers=_alternating(_every_other(count), facts.require("gemma2.attention.sliding_window", int)),
        activation="gelu_tanh",
        post_norms=True,
        attention_scale=scale,
        attention_softcap=facts.get("gemma2.attn_logit_softcapping", float, default=50.0),
        final_softcap=facts.get("gemma2.final_logit_softcapping", float, default=30.0),
        **_scaled(hidden),
    )


def _gemma3_hf(facts: Facts) -> DecoderSpec:
    head_dim = facts.require("head_dim", int)
    pattern = facts.get("sliding_window_pattern", int, default=_PATTERN)
    sliding = hf_form.windows(facts, _all_but_sixth(facts.require("num_hidden_layers", int), pattern))
    local = hf_form.rope_settings(facts, "sliding_attention")
    if facts.get("rope_parameters", dict, default=None) is None:
        local = {"rope_theta": facts.get("rope_local_base_freq", float, default=10000.0)}
    ropes = (
        hf_form.read_rope(facts, head_dim, hf_form.rope_settings(facts, "full_attention")),
        hf_form.read_rope(facts, head_dim, local),
    )
    return hf_form.read_spec(
        facts,
        layers=_alternating(sliding, facts.require("sliding_window", int), local_rope=1),
        ropes=ropes,
        activation=_activation(facts),
        post_norms=True,
        qk_norm=True,
        attention_scale=facts.require("query_pre_attn_scalar", float) ** -0.5,
        attention_softcap=facts.get("attn_logit_softcapping", float, default=None) or 0.0,
        final_softcap=facts.get("final_logit_softcapping", float, default=None) or 0.0,
        **_scaled(facts.require("hidden_size", int)),
    )


def _gemma3_gguf(facts: Facts) -> DecoderSpec:
    count = facts.require("gemma3.block_count", int)
    hidden, heads = facts.require("gemma3.embedding_length", int), facts.require("gemma3.attention.head_count", int)
    head_dim = facts.get("gemma3.attention.key_length", int, default=256)
    wide = gguf_form.read_rope(facts, "gemma3", head_dim)
    local = Rope(dim=wide.dim, base=facts.get("gemma3.rope.freq_base_swa", float, default=10000.0))
    # the 27B model alone, which has 62 layers, scales by its width instead of its heads' length
    scale = (hidden / heads) ** -0.5 if count == 62 and heads > 0 else None
    return gguf_form.read_spec(
        facts,
        "gemma3",
        layers=_alternating(_all_but_sixth(count), facts.require("gemma3.attention.sliding_window", int), local_rope=1),
        ropes=(wide, local),
        activation="gelu_tanh",
        post_norms=True,
        qk_norm=True,
        attention_scale=scale,
        final_softcap=facts.get("gemma3.final_logit_softcapping", float, default=0.0),
        **_scaled(hidden),
    )


def _post_norm_pieces(spec: DecoderSpec) -> Pieces:
    layer = "model.layers.{layer}."
    return hf_form.pieces(spec) | {
        "post_attention_norm": Piece(layer + "post_attention_layernorm.weight"),
        "ffn_norm": Piece(layer + "pre_feedforward_layernorm.weight"),
        "post_ffn_norm": Piece(layer + "post_feedforward_layernorm.weight"),
    }


GEMMA = Architecture(
    Form(_gemma_gguf, gguf_form.pieces, unused=gguf_form.UNUSED),
    Form(_gemma_hf, hf_form.pieces, norm_offset=1.0, unused=(*hf_form.UNUSED, "lm_head.weight")),
)
GEMMA2 = Architecture(
    Form(_gemma2_gguf, gguf_form.pieces, unused=gguf_form.UNUSED),
    Form(_gemma2_hf, _post_norm_pieces, norm_offset=1.0, unused=(*hf_form.UNUSED, "lm_head.weight")),
)
GEMMA3 = Architecture(
    Form(_gemma3_gguf, gguf_form.pieces, unused=gguf_form.UNUSED),
    Form(_gemma3_hf, _post_norm_pieces, norm_offset=1.0, unused=(*hf_form.UNUSED, "lm_head.weight")),
)
