"""Llama 2 and 3, Mistral, Mixtral, SmolLM2 and SmolLM3.

llama.cpp's converter stores these architectures' q and k rows with interleaved rotary pairs.
"""

from __future__ import annotations

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
from mistralrs.models.spec import DecoderSpec, LayerSpec, MoeSpec


def _gguf_spec(facts: ModelMetadata) -> DecoderSpec:
    window = facts.get("llama.attention.sliding_window", int, default=0)
    layers = (LayerSpec(window=window),) * layer_count(facts, "llama.block_count")
    experts = facts.get("llama.expert_count", int, default=0)
    if not experts:
        return gguf_mapping.read_spec(facts, "llama", layers=layers)
    moe = MoeSpec(experts=experts, experts_used=facts.require("llama.expert_used_count", int))
    return gguf_mapping.read_spec(facts, "llama", layers=layers, moe=moe)


def _gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    more = {}
    if spec.layers[0].window:
        more["attention.sliding_window"] = spec.layers[0].window
    if spec.moe:
        more |= {"expert_count": spec.moe.experts, "expert_used_count": spec.moe.experts_used}
    factors = spec.attention.ropes[0].factors
    vectors = {gguf_mapping.ROPE_FACTORS: factors} if factors else None
    return gguf_mapping.write(spec, "llama", vectors=vectors, more=more)


def _hf_spec(facts: ModelMetadata) -> DecoderSpec:
    return hf_mapping.read_spec(facts)


def _mistral_spec(facts: ModelMetadata) -> DecoderSpec:
    window = facts.get("sliding_window", int, default=None) or 0
    return hf_mapping.read_spec(facts, layers=(LayerSpec(window=window),) * layer_count(facts, "num_hidden_layers"))


def _mixtral_spec(facts: ModelMetadata) -> DecoderSpec:
    window = facts.get("sliding_window", int, default=None) or 0
    experts, used = facts.require("num_local_experts", int), facts.require("num_experts_per_tok", int)
    layers = (LayerSpec(window=window),) * layer_count(facts, "num_hidden_layers")
    return hf_mapping.read_spec(facts, layers=layers, moe=MoeSpec(experts=experts, experts_used=used))


def _mixtral_tensors(spec: DecoderSpec) -> TensorRefs:
    block = "model.layers.{layer}.block_sparse_moe."
    experts = {"expert_gate_proj": "w1", "expert_down_proj": "w2", "expert_up_proj": "w3"}
    moe = {part: TensorRef(f"{block}experts.{{expert}}.{name}.weight") for part, name in experts.items()}
    return hf_mapping.tensors(spec) | moe | {"router": TensorRef(block + "gate.weight")}


def _without_rope(layers: int, flags: list[object] | None, interval: int) -> tuple[LayerSpec, ...]:
    """Returns the layers of SmolLM3, of which every fourth has no rotation."""
    if flags is None:
        if interval < 1:
            raise LoadError(f"no_rope_layer_interval is {interval}, not at least 1")
        flags = [(i + 1) % interval != 0 for i in range(layers)]
    if len(flags) != layers or any(flag not in (0, 1) for flag in flags):
        raise LoadError(f"no_rope_layers is not a list of {layers} times 0 or 1")
    return tuple(LayerSpec(rope=0 if rotated else None) for rotated in flags)


def _smollm3_hf_spec(facts: ModelMetadata) -> DecoderSpec:
    if facts.get("use_sliding_window", bool, default=False):
        raise LoadError("SmolLM3 with a sliding window is not supported", hint="HuggingFaceTB/SmolLM3-3B has none")
    interval = facts.get("no_rope_layer_interval", int, default=4)
    flags = facts.get("no_rope_layers", list, default=None)
    return hf_mapping.read_spec(facts, layers=_without_rope(layer_count(facts, "num_hidden_layers"), flags, interval))


def _smollm3_gguf_spec(facts: ModelMetadata) -> DecoderSpec:
    layers = _without_rope(layer_count(facts, "smollm3.block_count"), None, 4)
    return gguf_mapping.read_spec(facts, "smollm3", layers=layers)


def _smollm3_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    return gguf_mapping.write(spec, "smollm3")


def _ggml_spec(facts: ModelMetadata) -> DecoderSpec:
    names = {part: piece.name for part, piece in _GGML_TENSORS.items()}
    return gguf_mapping.read_spec(facts, "llama", embedding=names["embed_tokens"], head=names["lm_head"])


def _ggml_tensors(spec: DecoderSpec) -> TensorRefs:
    return _GGML_TENSORS


_GGML_TENSORS: TensorRefs = {
    part: TensorRef(name)
    for part, name in {
        "embed_tokens": "tok_embeddings.weight",
        "norm": "norm.weight",
        "lm_head": "output.weight",
        "attention_norm": "layers.{layer}.attention_norm.weight",
        "q_proj": "layers.{layer}.attention.wq.weight",
        "k_proj": "layers.{layer}.attention.wk.weight",
        "v_proj": "layers.{layer}.attention.wv.weight",
        "o_proj": "layers.{layer}.attention.wo.weight",
        "ffn_norm": "layers.{layer}.ffn_norm.weight",
        "gate_proj": "layers.{layer}.feed_forward.w1.weight",
        "down_proj": "layers.{layer}.feed_forward.w2.weight",
        "up_proj": "layers.{layer}.feed_forward.w3.weight",
    }.items()
}

_GGUF = WeightsMapping(
    _gguf_spec,
    gguf_mapping.tensors,
    interleaved=gguf_mapping.INTERLEAVED,
    unused=gguf_mapping.UNUSED,
    write=_gguf_write,
)

_GGML = WeightsMapping(_ggml_spec, _ggml_tensors, interleaved=gguf_mapping.INTERLEAVED, unused=("rope.freqs",))

LLAMA = Architecture(_GGUF, WeightsMapping(_hf_spec, hf_mapping.tensors, unused=hf_mapping.UNUSED), _GGML)
MISTRAL = Architecture(None, WeightsMapping(_mistral_spec, hf_mapping.tensors, unused=hf_mapping.UNUSED))
MIXTRAL = Architecture(None, WeightsMapping(_mixtral_spec, _mixtral_tensors, unused=hf_mapping.UNUSED), mixture=True)
SMOLLM3 = Architecture(
    WeightsMapping(
        _smollm3_gguf_spec,
        gguf_mapping.tensors,
        interleaved=gguf_mapping.INTERLEAVED,
        unused=gguf_mapping.UNUSED,
        write=_smollm3_gguf_write,
    ),
    WeightsMapping(_smollm3_hf_spec, hf_mapping.tensors, unused=hf_mapping.UNUSED),
)
