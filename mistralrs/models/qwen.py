"""Qwen2, Qwen2.5 and Qwen3 (dense). q, k and v have biases if the file has them."""

from __future__ import annotations

from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import Architecture, GgufFields, ModelMetadata, WeightsMapping, layer_count
from mistralrs.models.spec import DecoderSpec, LayerSpec


def layers(facts: ModelMetadata) -> tuple[LayerSpec, ...]:
    """Returns the layers; those from ``max_window_layers`` on have a window if ``use_sliding_window`` is set."""
    count = layer_count(facts, "num_hidden_layers")
    if not facts.get("use_sliding_window", bool, default=False):
        return (LayerSpec(),) * count
    window = facts.require("sliding_window", int)
    first = facts.get("max_window_layers", int, default=count)
    sliding = hf_mapping.windows(facts, tuple(i >= first for i in range(count)))
    return tuple(LayerSpec(window=window if yes else 0) for yes in sliding)


def _qwen2_hf(facts: ModelMetadata) -> DecoderSpec:
    return hf_mapping.read_spec(facts, layers=layers(facts))


def _qwen2_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    return gguf_mapping.write(spec, "qwen2")


def _qwen2_gguf(facts: ModelMetadata) -> DecoderSpec:
    return gguf_mapping.read_spec(facts, "qwen2")


def _qwen2vl_gguf(facts: ModelMetadata) -> DecoderSpec:
    return gguf_mapping.read_spec(facts, "qwen2vl")


def _qwen3_hf(facts: ModelMetadata) -> DecoderSpec:
    return hf_mapping.read_spec(facts, layers=layers(facts), attention={"qk_norm": "head"})


def _qwen3_gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    return gguf_mapping.write(spec, "qwen3")


def _qwen3_gguf(facts: ModelMetadata) -> DecoderSpec:
    return gguf_mapping.read_spec(facts, "qwen3", attention={"qk_norm": "head"})


def _qwen3vl_gguf(facts: ModelMetadata) -> DecoderSpec:
    return gguf_mapping.read_spec(facts, "qwen3vl", attention={"qk_norm": "head"})


QWEN2 = Architecture(
    WeightsMapping(_qwen2_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED, write=_qwen2_gguf_write),
    WeightsMapping(_qwen2_hf, hf_mapping.tensors, unused=hf_mapping.UNUSED),
)
QWEN3 = Architecture(
    WeightsMapping(_qwen3_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED, write=_qwen3_gguf_write),
    WeightsMapping(_qwen3_hf, hf_mapping.tensors, unused=hf_mapping.UNUSED),
)

QWEN2VL_GGUF = WeightsMapping(_qwen2vl_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED)
QWEN3VL_GGUF = WeightsMapping(_qwen3vl_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED)
"""The language models of Qwen2-VL, 2.5-VL and 3-VL; without images their rotary embedding is the plain one."""
