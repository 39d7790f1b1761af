"""Granite 3 and dense models of its form: Llama with multipliers on embedding, residuals, scores and logits."""

from __future__ import annotations

from typing import Any

from mistralrs.errors import LoadError
from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import Architecture, GgufFields, ModelMetadata, WeightsMapping, layer_count
from mistralrs.models.spec import DecoderSpec, LayerSpec


def _logits_multiplier(divisor: float) -> float:
    """From what logits are divided by. Raises ``LoadError``."""
    if not divisor > 0:
        raise LoadError(f"logits are divided by {divisor}, which is not positive")
    return 1 / divisor


def hf_spec(facts: ModelMetadata, **more: Any) -> DecoderSpec:
    return hf_mapping.read_spec(
        facts,
        attention={"scale": facts.get("attention_multiplier", float, default=1.0)},
        embedding_multiplier=facts.get("embedding_multiplier", float, default=1.0),
        residual_multiplier=facts.get("residual_multiplier", float, default=1.0),
        logits_multiplier=_logits_multiplier(facts.get("logits_scaling", float, default=1.0)),
        **more,
    )


def gguf_spec(facts: ModelMetadata, prefix: str = "granite") -> DecoderSpec:
    """As in llama.cpp, a multiplier that is zero is one that is not there, and ``finetuned`` says whether q and k are
    rotated."""
    rotated = facts.get(f"{prefix}.rope.scaling.finetuned", bool, default=True)
    return gguf_mapping.read_spec(
        facts,
        prefix,
        layers=(LayerSpec(rope=0 if rotated else None),) * layer_count(facts, f"{prefix}.block_count"),
        attention={"scale": facts.get(f"{prefix}.attention.scale", float, default=0.0) or None},
        embedding_multiplier=facts.get(f"{prefix}.embedding_scale", float, default=0.0) or 1.0,
        residual_multiplier=facts.get(f"{prefix}.residual_scale", float, default=0.0) or 1.0,
        logits_multiplier=_logits_multiplier(facts.require(f"{prefix}.logit_scale", float)),
    )


def _gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    more = {
        "attention.scale": spec.attention.scale or spec.attention.head_dim**-0.5,
        "embedding_scale": spec.embedding_multiplier,
        "residual_scale": spec.residual_multiplier,
        "logit_scale": 1 / spec.logits_multiplier,
        "rope.scaling.finetuned": spec.layers[0].rope is not None,
    }
    return gguf_mapping.write(spec, "granite", more=more)


_GGUF = WeightsMapping(
    gguf_spec, gguf_mapping.tensors, interleaved=gguf_mapping.INTERLEAVED, unused=gguf_mapping.UNUSED, write=_gguf_write
)
GRANITE = Architecture(_GGUF, WeightsMapping(hf_spec, hf_mapping.tensors, unused=hf_mapping.UNUSED))
