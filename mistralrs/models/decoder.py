"""The decoder: a list of operations assembled from a spec. The only definition of a forward pass.

Knows no format, no device and no architecture by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mistralrs.models.parts import Parts
from mistralrs.models.spec import DecoderSpec
from mistralrs.nn.attention import attention
from mistralrs.nn.mlp import gated_mlp
from mistralrs.nn.rope import inverse_frequencies
from mistralrs.ops.arena import Arena, Buffer, buffer
from mistralrs.ops.backend import Backend, KvCache, KvShape, Norm, Op
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a step may be and how much context is kept."""

    max_tokens: int
    max_seqs: int
    max_logits: int
    num_blocks: int
    block_size: int
    max_blocks: int
    """Blocks of one sequence."""


@dataclass(frozen=True, slots=True)
class Terms:
    """In how many int8 terms each projection takes its input, 1 or 2. The second costs prefill as much as the first."""

    qkv: int
    output: int
    gate_up: int
    down: int
    head: int


PRECISIONS: dict[str, Terms] = {
    # where rounding hurts most for what it costs (docs/log.md); the head is computed for few rows
    "default": Terms(qkv=2, output=1, gate_up=1, down=2, head=2),
    "high": Terms(qkv=2, output=2, gate_up=2, down=2, head=2),
}


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model that is ready to run: fill ``args``, call ``forward``, read ``logits``."""

    args: StepArgs
    logits: Buffer
    """(max_logits, vocab) float32; the first num_logits rows are those of the last step."""
    forward: Callable[[], None]
    kv: KvCache


def sizes_of(spec: DecoderSpec, limits: Limits) -> Sizes:
    return Sizes(
        max_tokens=limits.max_tokens,
        max_seqs=limits.max_seqs,
        max_logits=limits.max_logits,
        max_blocks=limits.max_blocks,
        hidden=spec.hidden_size,
        q=spec.num_heads * spec.head_dim,
        kv=spec.kv_heads * spec.head_dim,
        ffn=spec.ffn_size,
        vocab=spec.vocab_size,
        rotary_half=spec.rope.dim // 2,
    )


def build_decoder(spec: DecoderSpec, parts: Parts, backend: Backend, limits: Limits, *, terms: Terms) -> Decoder:
    """Places the weights and binds the operations."""
    sizes = sizes_of(spec, limits)
    work, args = Workspace(sizes), StepArgs(sizes)
    kv = backend.kv_cache(
        KvShape(
            layers=spec.num_layers,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            num_blocks=limits.num_blocks,
            block_size=limits.block_size,
        )
    )
    frequencies = inverse_frequencies(spec.rope)
    inv_freq = buffer(Arena(4 * len(frequencies) + 64), len(frequencies))
    for i, value in enumerate(frequencies):
        inv_freq.values[i] = value

    [embedding] = parts.linears(["embedding"])
    ops: list[Op] = [backend.embed(embedding, work, inv_freq=inv_freq, rotary_scale=1.0)]
    for layer in range(spec.num_layers):
        qkv = parts.linears(["q", "k", "v"], layer=layer)
        [output] = parts.linears(["output"], layer=layer)
        ops += attention(
            backend,
            work,
            norm=Norm(parts.vector("attention_norm", layer=layer), spec.norm_eps),
            qkv=qkv,
            output=output,
            kv=kv,
            layer=layer,
            heads=spec.num_heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            scale=spec.head_dim**-0.5,
            qkv_terms=terms.qkv,
            output_terms=terms.output,
        )
        gate, up = parts.linears(["gate", "up"], layer=layer)
        [down] = parts.linears(["down"], layer=layer)
        ops += gated_mlp(
            backend,
            work,
            norm=Norm(parts.vector("ffn_norm", layer=layer), spec.norm_eps),
            gate=gate,
            up=up,
            down=down,
            activation=spec.activation,
            gate_up_terms=terms.gate_up,
            down_terms=terms.down,
        )
    head = embedding if spec.tied_head else parts.linears(["head"])[0]
    norm = Norm(parts.vector("norm"), spec.norm_eps)
    ops.append(backend.project([head], work.x, [work.logits], norm=norm, terms=terms.head, logits_only=True))
    return Decoder(args, work.logits, backend.program(ops, args), kv)
