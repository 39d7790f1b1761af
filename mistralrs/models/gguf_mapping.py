"""The common part of all architectures' GGUF mappings: key and tensor names of the GGUF specification."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mistralrs.errors import FormatError, LoadError
from mistralrs.models.architecture import (
    NO_FIELDS,
    Fields,
    GgufFields,
    ModelMetadata,
    TensorRef,
    TensorRefs,
    all_but_every,
    check_head_dim,
    check_shape,
    checked,
    layer_count,
)
from mistralrs.models.spec import AttentionSpec, DecoderSpec, LayerSpec, NormSpec
from mistralrs.nn.rope import Rope, Yarn, yarn_scale

ROPE_FACTORS = "rope_freqs.weight"
_SMALLEST, _LARGEST = 1e-30, 1e30
"""The range in which powers and products of rotary numbers stay finite."""
INTERLEAVED = frozenset({"q_proj", "k_proj"})
"""Parts that llama.cpp's converter stores with interleaved rotary pairs, for the architectures where it does so."""
UNUSED = (ROPE_FACTORS, "blk.*.attn_rot_embd", "rope_factors_long.weight", "rope_factors_short.weight")

NAMES = {
    "embed_tokens": "token_embd.weight",
    "norm": "output_norm.weight",
    "lm_head": "output.weight",
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "q_proj": "blk.{layer}.attn_q.weight",
    "k_proj": "blk.{layer}.attn_k.weight",
    "v_proj": "blk.{layer}.attn_v.weight",
    "q_norm": "blk.{layer}.attn_q_norm.weight",
    "k_norm": "blk.{layer}.attn_k_norm.weight",
    "o_proj": "blk.{layer}.attn_output.weight",
    "post_attention_norm": "blk.{layer}.post_attention_norm.weight",
    "ffn_norm": "blk.{layer}.ffn_norm.weight",
    "gate_proj": "blk.{layer}.ffn_gate.weight",
    "up_proj": "blk.{layer}.ffn_up.weight",
    "down_proj": "blk.{layer}.ffn_down.weight",
    "post_ffn_norm": "blk.{layer}.post_ffw_norm.weight",
    "router": "blk.{layer}.ffn_gate_inp.weight",
}


def tensors(spec: DecoderSpec) -> TensorRefs:
    """Returns every part under its usual name; experts merged, or singly as in old files."""
    experts = {
        f"expert_{part}_proj": TensorRef(
            f"blk.{{layer}}.ffn_{part}_exps.weight", otherwise=TensorRef(f"blk.{{layer}}.ffn_{part}.{{expert}}.weight")
        )
        for part in ("gate", "up", "down")
    }
    return {part: TensorRef(name) for part, name in NAMES.items()} | experts


def fused_qkv(spec: DecoderSpec) -> TensorRefs:
    """Returns q, k and v as row ranges of one tensor, or each as a tensor of its own."""
    q, kv = spec.attention.q_size, spec.attention.kv_size
    name = "blk.{layer}.attn_qkv.weight"
    return {
        "q_proj": TensorRef(name, 0, whole=False, otherwise=TensorRef(NAMES["q_proj"])),
        "k_proj": TensorRef(name, q, whole=False, otherwise=TensorRef(NAMES["k_proj"])),
        "v_proj": TensorRef(name, q + kv, whole=False, otherwise=TensorRef(NAMES["v_proj"])),
    }


def read_spec(
    facts: ModelMetadata,
    prefix: str,
    *,
    eps: str = "layer_norm_rms_epsilon",
    embedding: str = NAMES["embed_tokens"],
    head: str = NAMES["lm_head"],
    attention: Fields = NO_FIELDS,
    norm: Fields = NO_FIELDS,
    **more: Any,
) -> DecoderSpec:
    """Returns the spec of the decoder that ``prefix.*`` describes.

    ``attention``, ``norm`` and ``more``: fields of ``AttentionSpec``, ``NormSpec`` and ``DecoderSpec`` that the
    architecture sets.

    Raises ``FormatError`` or ``LoadError`` for missing or inconsistent metadata.
    """
    hidden = facts.require(f"{prefix}.embedding_length", int)
    heads = facts.require(f"{prefix}.attention.head_count", int)
    count = layer_count(facts, f"{prefix}.block_count")
    kv_heads = _kv_heads(facts, prefix, heads)
    check_shape(hidden, heads, kv_heads)
    head_dim = facts.get(f"{prefix}.attention.key_length", int, default=hidden // heads)
    if facts.get(f"{prefix}.attention.value_length", int, default=head_dim) != head_dim or head_dim < 1:
        raise LoadError("keys and values of different or no length are not supported")
    table = facts.shape(embedding)
    fields: dict[str, Any] = {
        "layers": (LayerSpec(),) * count,
        "hidden_size": hidden,
        # a missing embedding is reported when the parts are checked
        "vocab_size": table[0] if table else 0,
        "max_position": facts.require(f"{prefix}.context_length", int),
        "tied_head": facts.shape(head) is None,
    }
    if "ffn_size" not in more:
        fields["ffn_size"] = facts.require(f"{prefix}.feed_forward_length", int)
    norms = NormSpec(**({"eps": facts.require(f"{prefix}.attention.{eps}", float)} | dict(norm)))
    ropes = attention["ropes"] if "ropes" in attention else (read_rope(facts, prefix, head_dim),)
    heads_spec = {"num_heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **attention, "ropes": ropes}
    return checked(DecoderSpec(**(fields | more), attention=AttentionSpec(**heads_spec), norm=norms))


def per_layer(facts: ModelMetadata, key: str, *, default: int) -> int | list[object]:
    """Returns a number for all layers, or a list with an entry for each. Raises ``FormatError`` for anything else."""
    try:
        return facts.get(key, int, default=default)
    except FormatError as single:
        try:
            return facts.get(key, list, default=[])
        except FormatError:
            raise single from None


def _kv_heads(facts: ModelMetadata, prefix: str, default: int) -> int:
    """Returns the number of KV heads. Raises ``LoadError`` where layers differ in it."""
    found = per_layer(facts, f"{prefix}.attention.head_count_kv", default=default)
    if isinstance(found, int):
        return found
    count = layer_count(facts, f"{prefix}.block_count")
    first = found[0] if found else None
    if type(first) is not int or found != [first] * count:
        raise LoadError(f"attention.head_count_kv is not {count} times the same number; layers that differ are refused")
    return first


def windows(facts: ModelMetadata, prefix: str, *, period: int) -> tuple[bool, ...]:
    """Returns for each layer whether it has a sliding window: ``attention.sliding_window_pattern`` is a list, or a
    number n where all but every n-th layer have one. ``period``: n where the file has neither. Raises ``LoadError``."""
    count = layer_count(facts, f"{prefix}.block_count")
    found = per_layer(facts, f"{prefix}.attention.sliding_window_pattern", default=period)
    if isinstance(found, int):
        return all_but_every(found, count)
    if len(found) != count or not all(isinstance(yes, bool) for yes in found):
        raise LoadError(f"attention.sliding_window_pattern is not a list of {count} booleans")
    return tuple(yes is True for yes in found)


def read_rope(facts: ModelMetadata, prefix: str, head_dim: int, *, factors: Sequence[float] | None = None) -> Rope:
    """Returns the rotary embedding. ``factors``: None takes those of Llama 3 files, if there are any."""
    dim = facts.get(f"{prefix}.rope.dimension_count", int, default=head_dim)
    if factors is None:
        factors = facts.vector(ROPE_FACTORS)
    scaling = facts.get(f"{prefix}.rope.scaling.type", str, default="linear")
    factor = 1.0
    if scaling == "linear":  # also in older files, which have the factor without a type
        older = facts.get(f"{prefix}.rope.scale_linear", float, default=1.0)
        factor = facts.get(f"{prefix}.rope.scaling.factor", float, default=older) or 1.0
    elif scaling not in ("none", "longrope", "yarn"):
        raise LoadError(
            f"rotary scaling of type {scaling!r} is not supported", hint="supported: linear, longrope, yarn, Llama 3"
        )
    base = facts.get(f"{prefix}.rope.freq_base", float, default=10000.0)
    scale = facts.get(f"{prefix}.rope.scaling.attn_factor", float, default=1.0)
    rope = Rope(dim=dim, base=base, linear_factor=factor, factors=tuple(factors), scale=scale)
    return checked_rope(_with_yarn(rope, facts, prefix) if scaling == "yarn" else rope, head_dim)


def _with_yarn(rope: Rope, facts: ModelMetadata, prefix: str) -> Rope:
    """Returns the rope with YaRN. Its factor on cosines and sines is ``yarn_attn_factor``, into which llama.cpp's
    converter writes ``attention_factor``. Where that is missing, the factor follows from the stretching as in
    llama.cpp, unless ``yarn_log_multiplier`` takes a part of it back. Raises ``LoadError`` for another
    ``yarn_ext_factor`` than 1.
    """
    scaling = f"{prefix}.rope.scaling"
    factor = facts.get(f"{scaling}.factor", float, default=1.0) or 1.0
    blend = facts.get(f"{scaling}.yarn_ext_factor", float, default=1.0)
    if blend != 1.0:
        raise LoadError(f"rotary scaling with a yarn_ext_factor of {blend} is not supported")
    context = facts.require(f"{prefix}.context_length", int)
    yarn = Yarn(
        factor=factor,
        original_context=facts.get(f"{scaling}.original_context_length", int, default=context),
        beta_fast=facts.get(f"{scaling}.yarn_beta_fast", float, default=32.0),
        beta_slow=facts.get(f"{scaling}.yarn_beta_slow", float, default=1.0),
    )
    back = facts.get(f"{scaling}.yarn_log_multiplier", float, default=0.0)
    stretched = yarn_scale(factor) / yarn_scale(factor, back) if back > 0 else yarn_scale(factor)
    return replace(
        rope, yarn=yarn, scale=rope.scale * facts.get(f"{scaling}.yarn_attn_factor", float, default=stretched)
    )


def checked_rope(rope: Rope, head_dim: int) -> Rope:
    """Returns ``rope`` if it can be computed. Raises ``LoadError``."""
    check_head_dim(head_dim)
    if not 0 < rope.dim <= head_dim or rope.dim % 2:
        raise LoadError(f"a rotary width of {rope.dim} does not fit heads of {head_dim}")
    if rope.factors and (
        len(rope.factors) != rope.dim // 2 or not all(_SMALLEST < factor < _LARGEST for factor in rope.factors)
    ):
        raise LoadError(f"{len(rope.factors)} rotary factors for {rope.dim // 2} frequencies, or one is not positive")
    if not all(_SMALLEST < number < _LARGEST for number in (rope.base, rope.linear_factor, rope.scale)):
        raise LoadError(f"rotary base {rope.base}, factor {rope.linear_factor} or scale {rope.scale} is not positive")
    yarn = rope.yarn
    if yarn is not None:
        numbers = (yarn.factor, yarn.original_context, yarn.beta_fast, yarn.beta_slow)
        if rope.base <= 1 or not all(_SMALLEST < number < _LARGEST for number in numbers):
            raise LoadError("the rotary scaling's numbers for yarn are not all positive")
    return rope


def _rope_keys(rope: Rope) -> dict[str, int | float | str]:
    """Returns a rotary embedding as the keys that ``read_rope`` reads."""
    keys: dict[str, int | float | str] = {"rope.dimension_count": rope.dim, "rope.freq_base": rope.base}
    scale, yarn = rope.scale, rope.yarn
    if rope.linear_factor != 1.0:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.linear_factor}
    if yarn is not None:
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": yarn.factor,
            "rope.scaling.original_context_length": int(yarn.original_context),
            "rope.scaling.yarn_beta_fast": yarn.beta_fast,
            "rope.scaling.yarn_beta_slow": yarn.beta_slow,
        }
        if math.isclose(scale, 1.0):
            keys["rope.scaling.yarn_log_multiplier"] = 1.0
        else:
            scale /= yarn_scale(yarn.factor)
    if not math.isclose(scale, 1.0):
        keys["rope.scaling.attn_factor"] = scale
    return keys


def write(
    spec: DecoderSpec,
    prefix: str,
    *,
    eps: str = "layer_norm_rms_epsilon",
    max_position: int | None = None,
    vectors: dict[str, tuple[float, ...]] | None = None,
    more: Mapping[str, int | float | list[bool]] = MappingProxyType({}),
) -> GgufFields:
    """Returns ``prefix.*`` for a decoder, the inverse of ``read_spec``. ``more``: the architecture's other keys,
    without the prefix; ``max_position``: the context, if it is not the spec's."""
    attention = spec.attention
    keys: dict[str, bool | int | float | str | list[bool]] = {
        "vocab_size": spec.vocab_size,
        "context_length": spec.max_position if max_position is None else max_position,
        "embedding_length": spec.hidden_size,
        "block_count": len(spec.layers),
        "feed_forward_length": spec.ffn_size,
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        f"attention.{eps}": spec.norm.eps,
        **_rope_keys(spec.attention.ropes[0]),
    }
    return GgufFields({f"{prefix}.{key}": value for key, value in (keys | dict(more)).items()}, vectors or {})
