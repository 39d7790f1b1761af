"""Phi-2, whose block is parallel, and Phi-3 and 3.5, whose projections are stored fused."""

from __future__ import annotations

from dataclasses import replace

from mistralrs.errors import LoadError
from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import (
    Architecture,
    GgufFields,
    ModelMetadata,
    TensorRef,
    TensorRefs,
    WeightsMapping,
    layer_count,
)
from mistralrs.models.spec import DecoderSpec, LayerSpec, LongContext

_LONG_FACTORS, _SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def _phi2_hf(facts: ModelMetadata) -> DecoderSpec:
    if facts.get("qk_layernorm", bool, default=False):
        raise LoadError("layer norms of q and k are not supported", hint="microsoft/phi-2 has none")
    return hf_mapping.read_spec(
        facts,
        norm={"kind": "layer", "eps": facts.get("layer_norm_eps", float, default=1e-5)},
        activation=hf_mapping.activation(facts.get("hidden_act", str, default="gelu_new")),
        gated=False,
        parallel=True,
    )


def _phi2_gguf(facts: ModelMetadata) -> DecoderSpec:
    return gguf_mapping.read_spec(
        facts,
        "phi2",
        eps="layer_norm_epsilon",
        norm={"kind": "layer"},
        activation="gelu_tanh",
        gated=False,
        parallel=True,
    )


def _phi2_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    return gguf_mapping.write(spec, "phi2", eps="layer_norm_epsilon")


def _phi2_hf_tensors(spec: DecoderSpec) -> TensorRefs:
    layer = "model.layers.{layer}."
    return hf_mapping.tensors(spec) | {
        "norm": TensorRef("model.final_layernorm.weight"),
        "o_proj": TensorRef(layer + "self_attn.dense.weight"),
        "up_proj": TensorRef(layer + "mlp.fc1.weight"),
        "down_proj": TensorRef(layer + "mlp.fc2.weight"),
    }


def _phi2_gguf_tensors(spec: DecoderSpec) -> TensorRefs:
    """Returns the tensors, with separate q, k and v; in older files these are fused."""
    together = {part: replace(piece, otherwise=None) for part, piece in gguf_mapping.fused_qkv(spec).items()}
    apart = {part: TensorRef(gguf_mapping.NAMES[part], otherwise=piece) for part, piece in together.items()}
    return gguf_mapping.tensors(spec) | apart


def _phi3_hf(facts: ModelMetadata) -> DecoderSpec:
    settings = hf_mapping.rope_settings(facts)
    window = facts.get("sliding_window", int, default=None) or 0
    limit, long = facts.require("max_position_embeddings", int), None
    if settings.get("rope_type", settings.get("type")) in hf_mapping.LONG_ROPES:
        made_for = hf_mapping.long_rope_limit(facts, settings)
        long = _long_context(limit, made_for, hf_mapping.factors(settings, "long_factor"))
        limit = min(limit, made_for)
    layers = (LayerSpec(window=window),) * layer_count(facts, "num_hidden_layers")
    return hf_mapping.read_spec(facts, layers=layers, max_position=limit, long_context=long)


def _long_context(context: int, made_for: int, factors: tuple[float, ...]) -> LongContext | None:
    """Returns the context beyond ``made_for``, the number of tokens that the short factors are made for."""
    return LongContext(context, factors) if factors and context > made_for else None


def _phi3_gguf(facts: ModelMetadata) -> DecoderSpec:
    """Returns the spec for the context of the short factors; ``long_context`` has the long ones."""
    window = facts.get("phi3.attention.sliding_window", int, default=0)
    layers = (LayerSpec(window=window),) * layer_count(facts, "phi3.block_count")
    spec = gguf_mapping.read_spec(facts, "phi3", layers=layers, attention={"ropes": ()})
    factors = facts.vector(_SHORT_FACTORS)
    limit = facts.get("phi3.rope.scaling.original_context_length", int, default=spec.max_position)
    rope = gguf_mapping.read_rope(facts, "phi3", spec.attention.head_dim, factors=factors)
    attention = replace(spec.attention, ropes=(rope,))
    if not factors:
        return replace(spec, attention=attention)
    others = tuple(facts.vector(_LONG_FACTORS))
    if others:
        gguf_mapping.checked_rope(replace(rope, factors=others), attention.head_dim)
    long = _long_context(spec.max_position, limit, others)
    return replace(spec, attention=attention, max_position=min(spec.max_position, limit), long_context=long)


def _phi3_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    """Returns the fields of a GGUF file. Other readers use the long factors past the length of the short ones."""
    rope, context = spec.attention.ropes[0], facts.require("max_position_embeddings", int)
    original = facts.get("original_max_position_embeddings", int, default=context)
    vectors = {}
    if rope.factors:
        settings = hf_mapping.rope_settings(facts)
        long, original = settings.get("long_factor"), hf_mapping.long_rope_limit(facts, settings)
        if not isinstance(long, list) or not all(type(factor) in (int, float) for factor in long):
            raise LoadError("config.json: longrope without a list long_factor")
        vectors = {_LONG_FACTORS: tuple(map(float, long)), _SHORT_FACTORS: rope.factors}
    more = {"attention.sliding_window": spec.layers[0].window, "rope.scaling.original_context_length": original}
    return gguf_mapping.write(spec, "phi3", max_position=context, vectors=vectors, more=more)


def _phi3_hf_tensors(spec: DecoderSpec) -> TensorRefs:
    layer = "model.layers.{layer}."
    q, kv = spec.attention.q_size, spec.attention.kv_size
    qkv, gate_up = layer + "self_attn.qkv_proj.weight", layer + "mlp.gate_up_proj.weight"
    return hf_mapping.tensors(spec) | {
        "q_proj": TensorRef(qkv, 0, whole=False),
        "k_proj": TensorRef(qkv, q, whole=False),
        "v_proj": TensorRef(qkv, q + kv, whole=False),
        "gate_proj": TensorRef(gate_up, 0, whole=False),
        "up_proj": TensorRef(gate_up, spec.ffn_size, whole=False),
    }


def _phi3_gguf_tensors(spec: DecoderSpec) -> TensorRefs:
    gate_up = "blk.{layer}.ffn_up.weight"
    fused = {"gate_proj": TensorRef(gate_up, 0, whole=False), "up_proj": TensorRef(gate_up, spec.ffn_size, whole=False)}
    return gguf_mapping.tensors(spec) | gguf_mapping.fused_qkv(spec) | fused


PHI2 = Architecture(
    WeightsMapping(_phi2_gguf, _phi2_gguf_tensors, unused=gguf_mapping.UNUSED, write=_phi2_gguf_write),
    WeightsMapping(_phi2_hf, _phi2_hf_tensors, unused=hf_mapping.UNUSED),
    template="phi-2",
)
PHI3 = Architecture(
    WeightsMapping(_phi3_gguf, _phi3_gguf_tensors, unused=gguf_mapping.UNUSED, write=_phi3_gguf_write),
    WeightsMapping(_phi3_hf, _phi3_hf_tensors, unused=hf_mapping.UNUSED),
)
