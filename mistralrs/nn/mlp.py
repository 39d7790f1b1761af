"""Feed-forward parts: x += down(act(gate(norm(x))) * up(norm(x))), or without a gate x += down(act(up(norm(x))))."""

from __future__ import annotations

from collections.abc import Sequence

from mistralrs.nn.attention import added
from mistralrs.ops.backend import Activation, Backend, Norm, Op
from mistralrs.ops.weight import Weight
from mistralrs.ops.workspace import Workspace


def mlp(
    backend: Backend,
    work: Workspace,
    *,
    norm: Norm,
    inputs: Sequence[Weight],
    down: Weight,
    activation: Activation,
    post_norm: Norm | None,
    refine_input: float,
    refine_down: float,
) -> list[Op]:
    """``inputs``: gate and up, or up alone. ``post_norm`` is applied to what is added."""
    read = backend.project(
        inputs,
        work.x,
        [work.ffn],
        norm=norm,
        finish="gated" if len(inputs) == 2 else "activate",
        activation=activation,
        refine_above=refine_input,
    )
    return [read, *added(backend, work, down, work.ffn, post_norm=post_norm, refine_above=refine_down)]
