"""Feed-forward parts."""

from __future__ import annotations

from mistralrs.ops.backend import Activation, Backend, Norm, Op
from mistralrs.ops.weight import Weight
from mistralrs.ops.workspace import Workspace


def gated_mlp(
    backend: Backend,
    work: Workspace,
    *,
    norm: Norm,
    gate: Weight,
    up: Weight,
    down: Weight,
    activation: Activation,
    gate_up_terms: int,
    down_terms: int,
) -> list[Op]:
    """x += down(act(gate(norm(x))) * up(norm(x)))."""
    return [
        backend.project(
            [gate, up], work.x, [work.ffn], norm=norm, finish="gated", activation=activation, terms=gate_up_terms
        ),
        backend.project([down], work.ffn, [work.x], finish="add", terms=down_terms),
    ]
