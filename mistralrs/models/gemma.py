"""Gemma 1, 2 and 3 (text). Norm weights are stored minus one in Hugging Face folders and whole in GGUF files."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from mistralrs.errors import LoadError
from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import (
    Architecture,
    GgufFields,
    ModelMetadata,
    WeightsMapping,
    layer_count,
)
from mistralrs.models.spec import DecoderSpec, LayerSpec
from mistralrs.nn.rope import Rope
from mistralrs.ops.backend import Activation

_PATTERN = 6
"""Gemma 3: every sixth layer has full attention."""


def _activation(facts: ModelMetadata) -> Activation:
    """Returns the activation: ``hidden_activation``, else ``hidden_act``, whose gelu is the tanh approximation here."""
    name = facts.get("hidden_act", str, default="gelu")
    return hf_mapping.activation(
        facts.get("hidden_activation", str, default="gelu_pytorch_tanh" if name == "gelu" else name)
    )


def _attention_scale(facts: ModelMetadata) -> float:
    """Returns ``query_pre_attn_scalar ** -0.5``. Raises ``LoadError`` for one that is not positive."""
    scalar = facts.require("query_pre_attn_scalar", float)
    if not 0 < scalar < math.inf:
        raise LoadError(f"query_pre_attn_scalar is {scalar}, not positive")
    return 1 / math.sqrt(scalar)


def _refuse_bidirectional(facts: ModelMetadata) -> None:
    if facts.get("use_bidirectional_attention", bool, default=False):
        raise LoadError("attention in both directions is not supported", hint="the model is made to embed text")


def _scaled(hidden: int) -> dict[str, Any]:
    return {"embedding_multiplier": hidden**0.5}


def _gemma_hf(facts: ModelMetadata) -> DecoderSpec:
    _refuse_bidirectional(facts)
    more = _scaled(facts.require("hidden_size", int))
    attention = {"head_dim": facts.require("head_dim", int)}
    return hf_mapping.read_spec(facts, activation=_activation(facts), attention=attention, **more)


def _gemma_gguf(facts: ModelMetadata) -> DecoderSpec:
    more = _scaled(facts.require("gemma.embedding_length", int))
    return gguf_mapping.read_spec(facts, "gemma", activation="gelu_tanh", **more)


def _gemma_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    return gguf_mapping.write(spec, "gemma")


def _alternating(sliding: tuple[bool, ...], window: int, *, local_rope: int = 0) -> tuple[LayerSpec, ...]:
    return tuple(LayerSpec(window, local_rope) if yes else LayerSpec() for yes in sliding)


def _every_other(count: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(count))


def _gemma2_hf(facts: ModelMetadata) -> DecoderSpec:
    _refuse_bidirectional(facts)
    sliding = hf_mapping.windows(facts, _every_other(layer_count(facts, "num_hidden_layers")))
    return hf_mapping.read_spec(
        facts,
        layers=_alternating(sliding, facts.require("sliding_window", int)),
        activation=_activation(facts),
        norm={"place": "both"},
        attention={
            "scale": _attention_scale(facts),
            "softcap": facts.get("attn_logit_softcapping", float, default=None) or 0.0,
        },
        logits_softcap=facts.get("final_logit_softcapping", float, default=None) or 0.0,
        **_scaled(facts.require("hidden_size", int)),
    )


def _gemma2_gguf(facts: ModelMetadata) -> DecoderSpec:
    sliding = _every_other(layer_count(facts, "gemma2.block_count"))
    spec = gguf_mapping.read_spec(
        facts,
        "gemma2",
        layers=_alternating(sliding, facts.require("gemma2.attention.sliding_window", int)),
        activation="gelu_tanh",
        norm={"place": "both"},
        attention={"softcap": facts.get("gemma2.attn_logit_softcapping", float, default=50.0)},
        logits_softcap=facts.get("gemma2.final_logit_softcapping", float, default=30.0),
        **_scaled(facts.require("gemma2.embedding_length", int)),
    )
    return replace(spec, attention=replace(spec.attention, scale=_scale_of_largest(spec, 46)))


def _gemma2_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    more = {
        "attention.sliding_window": _window(spec),
        "attn_logit_softcapping": spec.attention.softcap,
        "final_logit_softcapping": spec.logits_softcap,
    }
    return gguf_mapping.write(spec, "gemma2", more=more)


def _gemma3_hf(facts: ModelMetadata) -> DecoderSpec:
    _refuse_bidirectional(facts)
    head_dim = facts.require("head_dim", int)
    pattern = facts.get("sliding_window_pattern", int, default=_PATTERN)
    sliding = hf_mapping.windows(facts, period=pattern)
    given = facts.get("rope_parameters", dict, default={})
    base = facts.get("rope_local_base_freq", float, default=10000.0)
    sliding_rope = given.get("sliding_attention")
    local = {"rope_theta": base} | (sliding_rope if isinstance(sliding_rope, dict) else {})
    ropes = (
        hf_mapping.read_rope(facts, head_dim, hf_mapping.rope_settings(facts, "full_attention", theta=1e6)),
        hf_mapping.read_rope(facts, head_dim, local),
    )
    return hf_mapping.read_spec(
        facts,
        layers=_alternating(sliding, facts.require("sliding_window", int), local_rope=1),
        activation=_activation(facts),
        norm={"place": "both"},
        attention={
            "ropes": ropes,
            "qk_norm": "head",
            "scale": _attention_scale(facts),
            "softcap": facts.get("attn_logit_softcapping", float, default=None) or 0.0,
        },
        logits_softcap=facts.get("final_logit_softcapping", float, default=None) or 0.0,
        **_scaled(facts.require("hidden_size", int)),
    )


def _gemma3_gguf(facts: ModelMetadata) -> DecoderSpec:
    sliding = gguf_mapping.windows(facts, "gemma3", period=_PATTERN)
    spec = gguf_mapping.read_spec(
        facts,
        "gemma3",
        layers=_alternating(sliding, facts.require("gemma3.attention.sliding_window", int), local_rope=1),
        activation="gelu_tanh",
        norm={"place": "both"},
        attention={"ropes": (), "qk_norm": "head"},
        logits_softcap=facts.get("gemma3.final_logit_softcapping", float, default=0.0),
        **_scaled(facts.require("gemma3.embedding_length", int)),
    )
    wide = gguf_mapping.read_rope(facts, "gemma3", spec.attention.head_dim)
    local = Rope(dim=wide.dim, base=facts.get("gemma3.rope.freq_base_swa", float, default=10000.0))
    ropes = (wide, gguf_mapping.checked_rope(local, spec.attention.head_dim))
    return replace(spec, attention=replace(spec.attention, ropes=ropes, scale=_scale_of_largest(spec, 62)))


def _gemma3_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    more = {"attention.sliding_window": _window(spec), "rope.freq_base_swa": spec.attention.ropes[1].base}
    if spec.logits_softcap:
        more["final_logit_softcapping"] = spec.logits_softcap
    return gguf_mapping.write(spec, "gemma3", more=more)


def _window(spec: DecoderSpec) -> int:
    """Returns the window of the layers that have one."""
    return max(layer.window for layer in spec.layers)


def _scale_of_largest(spec: DecoderSpec, layers: int) -> float | None:
    """Returns the factor on the scores, which GGUF files lack: the 27B model alone, identified by its number of layers,
    scales by its hidden size instead of its heads' width.
    """
    return (spec.hidden_size / spec.attention.num_heads) ** -0.5 if len(spec.layers) == layers else None


GEMMA = Architecture(
    WeightsMapping(_gemma_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED, write=_gemma_gguf_write),
    WeightsMapping(_gemma_hf, hf_mapping.tensors, norm_offset=1.0, unused=(*hf_mapping.UNUSED, "lm_head.weight")),
)
GEMMA2 = Architecture(
    WeightsMapping(_gemma2_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED, write=_gemma2_gguf_write),
    WeightsMapping(
        _gemma2_hf, hf_mapping.post_norm_tensors, norm_offset=1.0, unused=(*hf_mapping.UNUSED, "lm_head.weight")
    ),
)
GEMMA3 = Architecture(
    WeightsMapping(_gemma3_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED, write=_gemma3_gguf_write),
    WeightsMapping(
        _gemma3_hf, hf_mapping.post_norm_tensors, norm_offset=1.0, unused=(*hf_mapping.UNUSED, "lm_head.weight")
    ),
)
