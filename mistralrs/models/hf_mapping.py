"""The common part of all architectures' Hugging Face mappings: keys of `config.json` and tensor names.

Both spellings of the rotary settings are read: ``rope_theta`` and ``rope_scaling``, and the newer ``rope_parameters``.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

from mistralrs.errors import LoadError
from mistralrs.models.architecture import (
    NO_FIELDS,
    Fields,
    ModelMetadata,
    TensorRef,
    TensorRefs,
    all_but_every,
    check_head_dim,
    check_shape,
    checked,
    layer_count,
)
from mistralrs.models.gguf_mapping import checked_rope
from mistralrs.models.spec import AttentionSpec, DecoderSpec, LayerSpec, NormSpec
from mistralrs.nn.rope import Rope, Yarn, yarn_scale
from mistralrs.ops.backend import Activation

UNUSED = ("*.rotary_emb.inv_freq", "*.masked_bias")

LONG_ROPES = ("longrope", "su")
"""The names of Phi-3's rotary scaling; the second is that of its first release."""

_LAYER = "model.layers.{layer}."
NAMES = {
    "embed_tokens": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "lm_head": "lm_head.weight",
    "attention_norm": _LAYER + "input_layernorm.weight",
    "q_proj": _LAYER + "self_attn.q_proj.weight",
    "k_proj": _LAYER + "self_attn.k_proj.weight",
    "v_proj": _LAYER + "self_attn.v_proj.weight",
    "q_norm": _LAYER + "self_attn.q_norm.weight",
    "k_norm": _LAYER + "self_attn.k_norm.weight",
    "o_proj": _LAYER + "self_attn.o_proj.weight",
    "ffn_norm": _LAYER + "post_attention_layernorm.weight",
    "gate_proj": _LAYER + "mlp.gate_proj.weight",
    "up_proj": _LAYER + "mlp.up_proj.weight",
    "down_proj": _LAYER + "mlp.down_proj.weight",
}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def tensors(spec: DecoderSpec) -> TensorRefs:
    return {part: TensorRef(name) for part, name in NAMES.items()}


def post_norm_tensors(spec: DecoderSpec) -> TensorRefs:
    """Returns every part of a model that norms the outputs of attention and feed-forward."""
    return tensors(spec) | {
        "post_attention_norm": TensorRef(_LAYER + "post_attention_layernorm.weight"),
        "ffn_norm": TensorRef(_LAYER + "pre_feedforward_layernorm.weight"),
        "post_ffn_norm": TensorRef(_LAYER + "post_feedforward_layernorm.weight"),
    }


def activation(name: str) -> Activation:
    """Returns the activation. Raises ``LoadError`` for one that is not supported."""
    if name not in _ACTIVATIONS:
        raise LoadError(f"the activation {name!r} is not supported", hint=f"supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def read_spec(
    facts: ModelMetadata, *, attention: Fields = NO_FIELDS, norm: Fields = NO_FIELDS, **more: Any
) -> DecoderSpec:
    """Returns the spec of the decoder that a `config.json` describes.

    ``attention``, ``norm`` and ``more``: fields of ``AttentionSpec``, ``NormSpec`` and ``DecoderSpec`` that the
    architecture sets. Raises ``FormatError`` or ``LoadError`` for missing or inconsistent settings.
    """
    hidden = facts.require("hidden_size", int)
    heads = facts.require("num_attention_heads", int)
    kv_heads = facts.get("num_key_value_heads", int, default=heads)
    count = layer_count(facts, "num_hidden_layers")
    check_shape(hidden, heads, kv_heads)
    head_dim = attention.get("head_dim") or facts.get("head_dim", int, default=hidden // heads)
    embedding = facts.shape(NAMES["embed_tokens"])
    fields: dict[str, Any] = {
        "layers": (LayerSpec(),) * count,
        "hidden_size": hidden,
        "vocab_size": embedding[0] if embedding else 0,
        "max_position": facts.get("max_position_embeddings", int, default=4096),
        # a head that the config declares and the file lacks is reported when the parts are checked
        "tied_head": facts.shape(NAMES["lm_head"]) is None and facts.get("tie_word_embeddings", bool, default=True),
    }
    if "ffn_size" not in more:
        fields["ffn_size"] = facts.require("intermediate_size", int)
    if "activation" not in more:
        fields["activation"] = activation(facts.get("hidden_act", str, default="silu"))
    norms = {"eps": facts.get("rms_norm_eps", float, default=1e-6), **norm}
    ropes = attention["ropes"] if "ropes" in attention else (read_rope(facts, head_dim),)
    heads_spec = {"num_heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **attention, "ropes": ropes}
    return checked(DecoderSpec(**(fields | more), attention=AttentionSpec(**heads_spec), norm=NormSpec(**norms)))


def windows(
    facts: ModelMetadata, default: tuple[bool, ...] | None = None, *, period: int | None = None
) -> tuple[bool, ...]:
    """Returns for each layer whether it has a sliding window: ``layer_types``, else all but every ``period``-th, else
    ``default``, else none of them."""
    count = layer_count(facts, "num_hidden_layers")
    if period is not None:
        default = all_but_every(period, count)
    kinds = facts.get("layer_types", list, default=None)
    if kinds is None:
        return default or (False,) * count
    if len(kinds) != count or any(kind not in ("sliding_attention", "full_attention") for kind in kinds):
        raise LoadError(f"layer_types is not a list of {count} times sliding_attention or full_attention")
    return tuple(kind == "sliding_attention" for kind in kinds)


def rope_settings(facts: ModelMetadata, kind: str | None = None, *, theta: float = 10000.0) -> dict[str, Any]:
    """Returns the rotary settings as one flat mapping. ``kind``: the type of layers to read, where layers differ;
    ``theta``: the default base."""
    given = facts.get("rope_parameters", dict, default=None)
    if given is not None:
        nested = given.get(kind) if kind else None
        settings = dict(nested if isinstance(nested, Mapping) else given)
    else:
        settings = dict(facts.get("rope_scaling", dict, default={}))
    settings.setdefault("rope_theta", facts.get("rope_theta", float, default=theta))
    return settings


def read_rope(facts: ModelMetadata, head_dim: int, settings: dict[str, Any] | None = None) -> Rope:
    """Returns a rotary embedding. Raises ``LoadError`` for a scaling that is not supported."""
    check_head_dim(head_dim)
    settings = rope_settings(facts) if settings is None else settings
    given = settings.get("partial_rotary_factor", facts.get("partial_rotary_factor", float, default=1.0))
    share = number(given, "partial_rotary_factor")
    if not 0 < share <= 1:
        raise LoadError(f"partial_rotary_factor is {share}, not between 0 and 1")
    dim = int(head_dim * share)
    base = number(settings.get("rope_theta", 10000.0), "rope_theta")
    kind = settings.get("rope_type", settings.get("type", "default"))
    rope = Rope(dim=dim, base=base)
    if kind == "linear":
        rope = Rope(dim=dim, base=base, linear_factor=number(settings.get("factor"), "factor"))
    elif kind == "llama3":
        rope = Rope(dim=dim, base=base, factors=_llama3_factors(settings, dim, base))
    elif kind in LONG_ROPES:
        rope = _long_rope(facts, settings, dim, base)
    elif kind == "yarn":
        rope = _yarn_rope(facts, settings, dim, base)
    elif kind != "default":
        hint = "supported: linear, llama3, longrope, yarn"
        raise LoadError(f"rotary scaling of type {kind!r} is not supported", hint=hint)
    return checked_rope(rope, head_dim)


def _yarn_rope(facts: ModelMetadata, settings: dict[str, Any], dim: int, base: float) -> Rope:
    """Returns YaRN with the defaults of `transformers`; a setting of null or zero counts as absent."""

    def given(name: str, default: float) -> float:
        return number(settings.get(name), name) if settings.get(name) is not None else default

    context = facts.get("max_position_embeddings", int, default=4096)
    original = given("original_max_position_embeddings", 0) or facts.get(
        "original_max_position_embeddings", int, default=context
    )
    if original <= 0:
        raise LoadError(f"config.json: original_max_position_embeddings is {original}, which is no context")
    factor = given("factor", context / original)
    back, more = given("mscale_all_dim", 0), given("mscale", 0)
    scale = yarn_scale(factor, more) / yarn_scale(factor, back) if back > 0 and more > 0 else yarn_scale(factor)
    yarn = Yarn(
        factor=factor,
        original_context=original,
        beta_fast=given("beta_fast", 0) or 32.0,
        beta_slow=given("beta_slow", 0) or 1.0,
        truncate=settings.get("truncate", True) is not False,
    )
    return Rope(dim=dim, base=base, yarn=yarn, scale=given("attention_factor", scale))


def number(value: object, name: str) -> float:
    """Returns a value of `config.json` as float. Raises ``LoadError`` for one that is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise LoadError(f"config.json: {name} is {value!r:.100}, not a number that can be used")
    return float(value)


def _llama3_factors(settings: dict[str, Any], dim: int, base: float) -> tuple[float, ...]:
    """Returns the divisors of Llama 3.1's scaling: long wavelengths are scaled by ``factor``, short ones kept, those
    between blended. They are rounded to float32, as in GGUF files, so that both formats give the same."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (number(settings.get(name), name) for name in names)
    if min(factor, low, original, base) <= 0 or high <= low:
        raise LoadError("config.json: the rotary scaling's factors do not fit together")
    factors = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * base ** (2 * i / dim)
        kept = (original / wavelength - low) / (high - low)  # 0: scaled, 1: kept
        kept = min(max(kept, 0.0), 1.0)
        factors.append(1 / ((1 - kept) / factor + kept))
    return tuple(array("f", factors))


def long_rope_limit(facts: ModelMetadata, settings: dict[str, Any]) -> int:
    """Returns the number of positions that the short factors are made for."""
    name = "original_max_position_embeddings"
    inside = settings.get(name)
    limit = number(facts.require(name, int) if inside is None else inside, name)
    if limit <= 1:
        raise LoadError(f"config.json: {name} is {limit}, which is no context")
    return int(limit)


def factors(settings: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Returns a list of divisors of frequencies; empty: there is none of that name. Raises ``LoadError``."""
    given = settings.get(name)
    if given is None:
        return ()
    if not isinstance(given, list):
        raise LoadError(f"config.json: longrope without a list {name}")
    return tuple(number(value, name) for value in given)


def _long_rope(facts: ModelMetadata, settings: dict[str, Any], dim: int, base: float) -> Rope:
    """Returns Phi-3's rotary embedding with its short factors."""
    if not isinstance(settings.get("short_factor"), list):
        raise LoadError("config.json: longrope without a list short_factor")
    if settings.get("long_factor") is not None:
        long = Rope(dim=dim, base=base, factors=factors(settings, "long_factor"))
        checked_rope(long, dim)
    original = long_rope_limit(facts, settings)
    ratio = facts.require("max_position_embeddings", int) / original
    scale = settings.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    return Rope(dim=dim, base=base, factors=factors(settings, "short_factor"), scale=number(scale, "attention_factor"))
