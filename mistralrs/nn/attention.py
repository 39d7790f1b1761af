"""An attention part: norm and projections, attention over the cache, output added to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mistralrs.ops.backend import Backend, KvCache, Norm, Op, Rotary, Temperature
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.linear import Linear
from mistralrs.ops.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The shape of attention."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    full_norms: bool = False
    """The norms of q and k span all heads."""
    temperature: Temperature | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """x += o_proj(attend(norm(x))), in two parts, so that a parallel feed-forward can read x between them."""

    read: list[Op]
    write: list[Op]


def attention(
    backend: Backend,
    work: Workspace,
    *,
    shape: Heads,
    layer: int,
    group: int,
    kv: KvCache,
    norm: Norm | None,
    qkv: Sequence[Linear],
    o_proj: Linear,
    rotary: Rotary | None,
    q_norm: Norm | None,
    k_norm: Norm | None,
    post_norm: Norm | None,
    residual_multiplier: float,
    outlier_threshold: float,
) -> Attention:
    """Returns a layer's attention. ``post_norm`` is applied to the output; ``group`` is the layer's KV group."""
    attend = backend.attend(
        work,
        kv,
        layer=layer,
        group=group,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=shape.scale,
        rotary=rotary,
        q_norm=q_norm,
        k_norm=k_norm,
        full_norms=shape.full_norms,
        window=shape.window,
        softcap=shape.softcap,
        temperature=shape.temperature,
    )
    inputs = (work.q, work.k, work.v)
    project = backend.project(qkv, work.x, inputs, norm=norm, outlier_threshold=outlier_threshold)
    write = added(
        backend,
        work,
        o_proj,
        work.attended,
        post_norm=post_norm,
        multiplier=residual_multiplier,
        outlier_threshold=outlier_threshold,
    )
    return Attention([project, attend], write)


def added(
    backend: Backend,
    work: Workspace,
    linear: Linear,
    source: Buffer,
    *,
    post_norm: Norm | None,
    multiplier: float,
    outlier_threshold: float,
) -> list[Op]:
    """Returns the operations x += multiplier * linear(source), or with a norm x += post_norm(linear(source))."""
    if post_norm is None:
        return [
            backend.project(
                [linear], source, [work.x], epilogue="add", scale=multiplier, outlier_threshold=outlier_threshold
            )
        ]
    return [
        backend.project([linear], source, [work.projected], outlier_threshold=outlier_threshold),
        backend.add_norm(work.projected, work.x, post_norm),
    ]
