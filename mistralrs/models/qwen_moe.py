"""Qwen3-MoE: Qwen3 with experts in every layer."""

from __future__ import annotations

from mistralrs.errors import LoadError
from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import Architecture, GgufFields, ModelMetadata, TensorRef, TensorRefs, WeightsMapping
from mistralrs.models.qwen import layers
from mistralrs.models.spec import DecoderSpec, MoeSpec


def _hf_spec(facts: ModelMetadata) -> DecoderSpec:
    if facts.get("decoder_sparse_step", int, default=1) != 1 or facts.get("mlp_only_layers", list, default=[]):
        raise LoadError(
            "layers without experts between those with experts (decoder_sparse_step, mlp_only_layers) are not supported"
        )
    moe = MoeSpec(
        experts=facts.get("num_experts", int, default=None) or facts.require("num_local_experts", int),
        experts_used=facts.require("num_experts_per_tok", int),
        normalize_weights=facts.get("norm_topk_prob", bool, default=False),
    )
    width = facts.require("moe_intermediate_size", int)
    return hf_mapping.read_spec(facts, layers=layers(facts), ffn_size=width, moe=moe, attention={"qk_norm": "head"})


def _hf_tensors(spec: DecoderSpec) -> TensorRefs:
    mlp = "model.layers.{layer}.mlp."
    experts = {f"expert_{part}": TensorRef(f"{mlp}experts.{{expert}}.{part}.weight") for part in _PARTS}
    return hf_mapping.tensors(spec) | experts | {"router": TensorRef(mlp + "gate.weight")}


_PARTS = ("gate_proj", "up_proj", "down_proj")


def _gguf_spec(facts: ModelMetadata) -> DecoderSpec:
    experts, used = (facts.require(f"qwen3moe.{name}", int) for name in ("expert_count", "expert_used_count"))
    moe = MoeSpec(experts=experts, experts_used=used)
    width = facts.require("qwen3moe.expert_feed_forward_length", int)
    return gguf_mapping.read_spec(facts, "qwen3moe", ffn_size=width, moe=moe, attention={"qk_norm": "head"})


def _gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    assert spec.moe is not None
    more = {
        "expert_count": spec.moe.experts,
        "expert_used_count": spec.moe.experts_used,
        "expert_feed_forward_length": spec.ffn_size,
        "feed_forward_length": facts.get("intermediate_size", int, default=spec.ffn_size),
    }
    return gguf_mapping.write(spec, "qwen3moe", more=more)


QWEN3MOE = Architecture(
    WeightsMapping(_gguf_spec, gguf_mapping.tensors, unused=gguf_mapping.UNUSED, write=_gguf_write),
    WeightsMapping(_hf_spec, _hf_tensors, unused=hf_mapping.UNUSED),
    mixture=True,
)
