"""Ministral 3: Llama with YaRN and a scale on the queries that grows with their position."""

from __future__ import annotations

from mistralrs.errors import LoadError
from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import Architecture, GgufFields, ModelMetadata, WeightsMapping, layer_count
from mistralrs.models.spec import DecoderSpec, LayerSpec
from mistralrs.ops.backend import Temperature


def _temperature(beta: float, period: float) -> Temperature | None:
    """Returns the attention temperature. Raises ``LoadError`` for numbers that are not valid for positions."""
    if not beta:
        return None
    if not (0 < beta < 1e6 and 1 <= period < 1 << 31):
        raise LoadError(f"attention that grows by {beta} every {period} tokens is not supported")
    return Temperature(beta, int(period))


def _hf_spec(facts: ModelMetadata) -> DecoderSpec:
    settings = hf_mapping.rope_settings(facts, theta=1e6)
    beta, period = (
        hf_mapping.number(settings.get(name) or 0, name)
        for name in ("llama_4_scaling_beta", "original_max_position_embeddings")
    )
    window = facts.get("sliding_window", int, default=None) or 0
    return hf_mapping.read_spec(
        facts,
        layers=(LayerSpec(window=window),) * layer_count(facts, "num_hidden_layers"),
        attention={"temperature": _temperature(beta, period)},
    )


def _gguf_spec(facts: ModelMetadata) -> DecoderSpec:
    beta = facts.get("mistral3.attention.temperature_scale", float, default=0.0)
    period = facts.get("mistral3.rope.scaling.original_context_length", int, default=0)
    return gguf_mapping.read_spec(facts, "mistral3", attention={"temperature": _temperature(beta, period)})


def _gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    temperature = spec.attention.temperature
    return gguf_mapping.write(
        spec, "mistral3", more={"attention.temperature_scale": temperature.beta} if temperature else {}
    )


MISTRAL3 = Architecture(
    WeightsMapping(
        _gguf_spec,
        gguf_mapping.tensors,
        interleaved=gguf_mapping.INTERLEAVED,
        unused=gguf_mapping.UNUSED,
        write=_gguf_write,
    ),
    WeightsMapping(_hf_spec, hf_mapping.tensors, unused=hf_mapping.UNUSED),
)
