"""An attention part: norm and projections, attention over the cache, output added to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence

from mistralrs.ops.backend import Backend, KvCache, Norm, Op
from mistralrs.ops.weight import Weight
from mistralrs.ops.workspace import Workspace


def attention(
    backend: Backend,
    work: Workspace,
    *,
    norm: Norm,
    qkv: Sequence[Weight],
    output: Weight,
    kv: KvCache,
    layer: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    qkv_terms: int,
    output_terms: int,
) -> list[Op]:
    """x += output(attention(norm(x)))."""
    return [
        backend.project(qkv, work.x, (work.q, work.k, work.v), norm=norm, terms=qkv_terms),
        backend.attend(work, kv, layer=layer, heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=scale),
        backend.project([output], work.attended, [work.x], finish="add", terms=output_terms),
    ]
