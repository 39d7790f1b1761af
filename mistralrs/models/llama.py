"""The Llama architecture (Llama 2 and 3, Mistral, SmolLM2) as GGUF files describe it.

Key and tensor names follow the GGUF specification. Files made by llama.cpp's converter store the rows of q and k so that
the two members of a rotary pair are adjacent; ``ADJACENT_PAIRS`` names those parts, and the loader puts them back.
"""

from __future__ import annotations

from collections.abc import Sequence

from mistralrs.errors import LoadError
from mistralrs.models.gguf_architecture import Facts, GgufArchitecture
from mistralrs.models.spec import DecoderSpec
from mistralrs.nn.rope import Rope

TENSORS = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "q": "blk.{layer}.attn_q.weight",
    "k": "blk.{layer}.attn_k.weight",
    "v": "blk.{layer}.attn_v.weight",
    "output": "blk.{layer}.attn_output.weight",
    "ffn_norm": "blk.{layer}.ffn_norm.weight",
    "gate": "blk.{layer}.ffn_gate.weight",
    "up": "blk.{layer}.ffn_up.weight",
    "down": "blk.{layer}.ffn_down.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
ADJACENT_PAIRS = frozenset({"q", "k"})


def spec_from_gguf(facts: Facts, rope_factors: Sequence[float]) -> DecoderSpec:
    """Reads the ``llama.*`` metadata. Raises ``FormatError`` or ``LoadError`` for what is missing or not supported."""
    if facts.get("llama.expert_count", int, default=0):
        raise LoadError(
            "this is a mixture of experts, which is not supported yet",
            hint="use a dense Llama or Mistral model",
        )
    hidden = facts.require("llama.embedding_length", int)
    heads = facts.require("llama.attention.head_count", int)
    kv_heads = facts.get("llama.attention.head_count_kv", int, default=heads)
    if min(hidden, heads, kv_heads) < 1 or heads % kv_heads:
        raise LoadError(f"{heads} heads, {kv_heads} KV heads and width {hidden} do not fit together")
    head_dim = facts.get("llama.attention.key_length", int, default=hidden // heads)
    if facts.get("llama.attention.value_length", int, default=head_dim) != head_dim:
        raise LoadError("keys and values of different length are not supported")
    return DecoderSpec(
        num_layers=facts.require("llama.block_count", int),
        hidden_size=hidden,
        ffn_size=facts.require("llama.feed_forward_length", int),
        num_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=facts.vocab_size,
        max_position=facts.require("llama.context_length", int),
        norm_eps=facts.require("llama.attention.layer_norm_rms_epsilon", float),
        rope=_rope(facts, head_dim, rope_factors),
        tied_head=not facts.has_head,
    )


def _rope(facts: Facts, head_dim: int, factors: Sequence[float]) -> Rope:
    dim = facts.get("llama.rope.dimension_count", int, default=head_dim)
    if not 0 < dim <= head_dim or dim % 2:
        raise LoadError(f"a rotary width of {dim} does not fit heads of {head_dim}")
    if factors and (len(factors) != dim // 2 or not all(f > 0 for f in factors)):
        raise LoadError(f"{ROPE_FACTORS}: {len(factors)} factors for {dim // 2} rotary frequencies, or one is not positive")
    scaling = facts.get("llama.rope.scaling.type", str, default="none")
    factor = 1.0
    if scaling == "linear":
        factor = facts.get("llama.rope.scaling.factor", float, default=1.0)
    elif scaling != "none":
        raise LoadError(f"rotary scaling of type {scaling!r} is not supported", hint="supported: none, linear, Llama 3")
    if not factor > 0:
        raise LoadError(f"a rotary scaling factor of {factor} is not positive")
    base = facts.get("llama.rope.freq_base", float, default=10000.0)
    if not base > 0:
        raise LoadError(f"a rotary base of {base} is not positive")
    return Rope(dim=dim, base=base, linear_factor=factor, factors=tuple(factors))


LLAMA = GgufArchitecture(
    tensors=TENSORS, spec=spec_from_gguf, rope_factors=ROPE_FACTORS, adjacent_pairs=ADJACENT_PAIRS
)
