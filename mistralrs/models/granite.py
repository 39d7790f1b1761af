"""Granite 3 and dense models of its form: Llama with multipliers on embedding, residuals, scores and logits."""

from __future__ import annotations

from mistralrs.errors import LoadError
from mistralrs.models import gguf_mapping, hf_mapping
from mistralrs.models.architecture import Architecture, GgufFields, ModelMetadata, WeightsMapping
from mistralrs.models.spec import DecoderSpec


def _logits_multiplier(divisor: float) -> float:
    """From what logits are divided by. Raises ``LoadError``."""
    if not divisor > 0:
        raise LoadError(f"logits are divided by {divisor}, which is not positive")
    return 1 / divisor


def _hf_spec(facts: ModelMetadata) -> DecoderSpec:
    return hf_mapping.read_spec(
        facts,
        attention={"scale": facts.get("attention_multiplier", float, default=1.0)},
        embedding_multiplier=facts.get("embedding_multiplier", float, default=1.0),
        residual_multiplier=facts.get("residual_multiplier", float, default=1.0),
        logits_multiplier=_logits_multiplier(facts.get("logits_scaling", float, default=1.0)),
    )


def _gguf_spec(facts: ModelMetadata) -> DecoderSpec:
    """A multiplier that is zero is one that is not there, as in llama.cpp."""
    return gguf_mapping.read_spec(
        facts,
        "granite",
        attention={"scale": facts.get("granite.attention.scale", float, default=0.0) or None},
        embedding_multiplier=facts.get("granite.embedding_scale", float, default=0.0) or 1.0,
        residual_multiplier=facts.get("granite.residual_scale", float, default=0.0) or 1.0,
        logits_multiplier=_logits_multiplier(facts.require("granite.logit_scale", float)),
    )


def _gguf_write(spec: DecoderSpec, facts: ModelMetadata) -> GgufFields:
    more = {
        "attention.scale": spec.attention.scale or spec.attention.head_dim**-0.5,
        "embedding_scale": spec.embedding_multiplier,
        "residual_scale": spec.residual_multiplier,
        "logit_scale": 1 / spec.logits_multiplier,
    }
    return gguf_mapping.write(spec, "granite", more=more)


GRANITE = Architecture(
    WeightsMapping(
        _gguf_spec,
        gguf_mapping.tensors,
        interleaved=gguf_mapping.INTERLEAVED,
        unused=gguf_mapping.UNUSED,
        write=_gguf_write,
    ),
    WeightsMapping(_hf_spec, hf_mapping.tensors, unused=hf_mapping.UNUSED),
)
