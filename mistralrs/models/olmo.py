"""OLMo 2 and 3: norms after attention and feed-forward alone, q and k normed over all heads; OLMo 3 has windows."""

from __future__ import annotations

from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import Architecture, GgufFields, ModelMetadata, WeightsMapping
from mistralrs.models.spec import DecoderSpec, LayerSpec
from mistralrs.nn.rope import Rope

_NORM = {"place": "after"}
_PERIOD = 4


def _layers(sliding: tuple[bool, ...], window: int) -> tuple[LayerSpec, ...]:
    return tuple(LayerSpec(window, 1) if yes else LayerSpec() for yes in sliding)


def _olmo2_hf(facts: ModelMetadata) -> DecoderSpec:
    return hf_mapping.read_spec(facts, norm=_NORM, attention={"qk_norm": "full"})


def _olmo3_hf(facts: ModelMetadata) -> DecoderSpec:
    """Returns OLMo 3's spec: layers with a window have the plain rotary embedding, the others a scaled one."""
    sliding = hf_mapping.windows(facts, period=_PERIOD)
    heads = max(facts.require("num_attention_heads", int), 1)
    head_dim = facts.get("head_dim", int, default=facts.require("hidden_size", int) // heads)
    wide = hf_mapping.rope_settings(facts, "full_attention", theta=5e5)
    given = facts.get("rope_parameters", dict, default={}).get("sliding_attention")
    local = {"rope_theta": wide["rope_theta"]} | (given if isinstance(given, dict) else {})
    ropes = tuple(hf_mapping.read_rope(facts, head_dim, settings) for settings in (wide, local))
    layers = _layers(sliding, facts.get("sliding_window", int, default=4096))
    return hf_mapping.read_spec(facts, layers=layers, norm=_NORM, attention={"qk_norm": "full", "ropes": ropes})


def _gguf(facts: ModelMetadata) -> DecoderSpec:
    """Returns the spec. OLMo 3 has OLMo 2's name and is identified by its window."""
    spec = gguf_mapping.read_spec(facts, "olmo2", norm=_NORM, attention={"qk_norm": "full"})
    window = facts.get("olmo2.attention.sliding_window", int, default=0)
    if not window:
        return spec
    [wide] = spec.attention.ropes
    local = Rope(dim=wide.dim, base=facts.get("olmo2.rope.freq_base_swa", float, default=wide.base))
    layers = _layers(gguf_mapping.windows(facts, "olmo2", period=_PERIOD), window)
    attention = {"qk_norm": "full", "ropes": (wide, gguf_mapping.checked_rope(local, spec.attention.head_dim))}
    return gguf_mapping.read_spec(facts, "olmo2", layers=layers, norm=_NORM, attention=attention)


def _gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    window, pattern = max(spec.windows), [layer.window > 0 for layer in spec.layers]
    if not window:
        return gguf_mapping.write(spec, "olmo2")
    return gguf_mapping.write(
        spec, "olmo2", more={"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}
    )


_GGUF = WeightsMapping(_gguf, gguf_mapping.tensors, unused=gguf_mapping.UNUSED, write=_gguf_write)

OLMO2 = Architecture(_GGUF, WeightsMapping(_olmo2_hf, hf_mapping.post_norm_tensors, unused=hf_mapping.UNUSED))
OLMO3 = Architecture(None, WeightsMapping(_olmo3_hf, hf_mapping.post_norm_tensors, unused=hf_mapping.UNUSED))
