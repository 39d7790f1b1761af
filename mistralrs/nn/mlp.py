"""Feed-forward parts: x += down(act(gate(norm(x))) * up(norm(x))), or without a gate x += down(act(up(norm(x))))."""

from __future__ import annotations

from collections.abc import Sequence

from mistralrs.nn.attention import added
from mistralrs.ops.backend import Activation, Backend, Norm, Op
from mistralrs.ops.linear import Linear
from mistralrs.ops.workspace import Workspace


def mlp(
    backend: Backend,
    work: Workspace,
    *,
    norm: Norm | None,
    inputs: Sequence[Linear],
    down: Linear,
    activation: Activation,
    post_norm: Norm | None,
    residual_multiplier: float,
    outlier_threshold: float,
) -> list[Op]:
    """Returns a feed-forward. ``inputs``: gate and up, or up alone. ``post_norm`` is applied to the output."""
    read = backend.project(
        inputs,
        work.x,
        [work.ffn],
        norm=norm,
        epilogue="gated" if len(inputs) == 2 else "activate",
        activation=activation,
        outlier_threshold=outlier_threshold,
    )
    write = added(
        backend,
        work,
        down,
        work.ffn,
        post_norm=post_norm,
        multiplier=residual_multiplier,
        outlier_threshold=outlier_threshold,
    )
    return [read, *write]
