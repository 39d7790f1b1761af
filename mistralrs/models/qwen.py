"""Qwen2, Qwen2.5 and Qwen3 (dense). Biases of q, k and v are found where the file has them."""

from __future__ import annotations

from mistralrs.models import gguf_form, hf_form
from mistralrs.models.architecture import Architecture, Facts, Form, Written, layer_count
from mistralrs.models.spec import DecoderSpec, LayerSpec


def _layers(facts: Facts) -> tuple[LayerSpec, ...]:
    count = layer_count(facts, "num_hidden_layers")
    if not facts.get("use_sliding_window", bool, default=False):
        return (LayerSpec(),) * count
    window = facts.require("sliding_window", int)
    first = facts.get("max_window_layers", int, default=count)
    sliding = hf_form.windows(facts, tuple(i >= first for i in range(count)))
    return tuple(LayerSpec(window=window if yes else 0) for yes in sliding)


def _qwen2_hf(facts: Facts) -> DecoderSpec:
    return hf_form.read_spec(facts, layers=_layers(facts))


def _qwen2_gguf_write(spec: DecoderSpec, facts: Facts) -> Written:
    return gguf_form.write(spec, "qwen2")


def _qwen2_gguf(facts: Facts) -> DecoderSpec:
    return gguf_form.read_spec(facts, "qwen2")


def _qwen2vl_gguf(facts: Facts) -> DecoderSpec:
    return gguf_form.read_spec(facts, "qwen2vl")


def _qwen3_hf(facts: Facts) -> DecoderSpec:
    return hf_form.read_spec(facts, layers=_layers(facts), qk_norm=True)


def _qwen3_gguf_write(spec: DecoderSpec, facts: Facts) -> Written:
    return gguf_form.write(spec, "qwen3")


def _qwen3_gguf(facts: Facts) -> DecoderSpec:
    return gguf_form.read_spec(facts, "qwen3", qk_norm=True)


def _qwen3vl_gguf(facts: Facts) -> DecoderSpec:
    return gguf_form.read_spec(facts, "qwen3vl", qk_norm=True)


QWEN2 = Architecture(
    Form(_qwen2_gguf, gguf_form.pieces, unused=gguf_form.UNUSED, write=_qwen2_gguf_write),
    Form(_qwen2_hf, hf_form.pieces, unused=hf_form.UNUSED),
)
QWEN3 = Architecture(
    Form(_qwen3_gguf, gguf_form.pieces, unused=gguf_form.UNUSED, write=_qwen3_gguf_write),
    Form(_qwen3_hf, hf_form.pieces, unused=hf_form.UNUSED),
)

QWEN2VL_GGUF = Form(_qwen2vl_gguf, gguf_form.pieces, unused=gguf_form.UNUSED)
QWEN3VL_GGUF = Form(_qwen3vl_gguf, gguf_form.pieces, unused=gguf_form.UNUSED)
"""The language models of Qwen2-VL, 2.5-VL and 3-VL, whose rotary embedding is the plain one without images."""
