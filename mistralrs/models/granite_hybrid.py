"""Granite 4 without Mamba layers and experts, which `config.json` calls a hybrid all the same: Granite 3 whose
feed-forward is the shared expert, and whose layers may do without rotation."""

from __future__ import annotations

from mistralrs.errors import LoadError
from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import Architecture, ModelMetadata, TensorRef, TensorRefs, WeightsMapping
from mistralrs.models.granite import gguf_spec, hf_spec
from mistralrs.models.spec import DecoderSpec, LayerSpec

_ATTENTION, _MAMBA = ("attention", "full_attention"), ("mamba", "linear_attention")
"""What ``layer_types`` calls them: as published, and as `transformers` writes it."""


def _check_dense(*, mamba: bool, experts: int) -> None:
    hint = "the dense Granite 4 models run: ibm-granite/granite-4.0-micro, granite-4.0-1b and granite-4.0-350m"
    if mamba:
        raise LoadError("the Mamba layers of a Granite hybrid are not supported", hint=hint)
    if experts:
        raise LoadError(f"the {experts} experts of a Granite hybrid are not supported", hint=hint)


def _hf_spec(facts: ModelMetadata) -> DecoderSpec:
    """What is missing is as in `transformers`: Mamba layers, experts and no rotation."""
    kinds, count = facts.get("layer_types", list, default=["mamba"]), facts.require("num_hidden_layers", int)
    mamba = any(kind in _MAMBA for kind in kinds)
    _check_dense(mamba=mamba, experts=facts.get("num_local_experts", int, default=8))
    if len(kinds) != count or any(kind not in _ATTENTION for kind in kinds):
        raise LoadError(f"layer_types is not a list of {count} times attention or mamba")
    positions = facts.get("position_embedding_type", str, default="nope")
    if positions not in ("rope", "nope"):
        raise LoadError(f"the position_embedding_type {positions!r} is not supported", hint="supported: rope, nope")
    layers = (LayerSpec(rope=0 if positions == "rope" else None),) * count
    return hf_spec(facts, layers=layers, ffn_size=facts.require("shared_intermediate_size", int))


def _hf_tensors(spec: DecoderSpec) -> TensorRefs:
    mlp = "model.layers.{layer}.shared_mlp."
    return hf_mapping.tensors(spec) | {
        "gate_proj": TensorRef(mlp + "input_linear.weight", 0, whole=False),
        "up_proj": TensorRef(mlp + "input_linear.weight", spec.ffn_size, whole=False),
        "down_proj": TensorRef(mlp + "output_linear.weight"),
    }


def _gguf_spec(facts: ModelMetadata) -> DecoderSpec:
    """A layer without KV heads is one of Mamba."""
    kv_heads = gguf_mapping.per_layer(facts, "granitehybrid.attention.head_count_kv", default=1)
    mamba = 0 in kv_heads if isinstance(kv_heads, list) else kv_heads == 0
    _check_dense(mamba=mamba, experts=facts.get("granitehybrid.expert_count", int, default=0))
    return gguf_spec(facts, "granitehybrid")


GRANITE_HYBRID = Architecture(None, WeightsMapping(_hf_spec, _hf_tensors, unused=hf_mapping.UNUSED))
GRANITE_HYBRID_GGUF = WeightsMapping(
    _gguf_spec, gguf_mapping.tensors, interleaved=gguf_mapping.INTERLEAVED, unused=gguf_mapping.UNUSED
)
