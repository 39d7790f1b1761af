"""Tables of deltas of the reference backend, and the sums that they add."""

from __future__ import annotations

import torch

from mistralrs.ops.linear import Delta, DeltaShape, Linear
from mistralrs.ops.reference_memory import plain, tensor_of
from mistralrs.ops.workspace import StepArgs


class ReferenceDeltaTable:
    """The deltas of one matrix, by slot."""

    def __init__(self, slots: int, shape: DeltaShape) -> None:
        self.shape = shape
        self.deltas: list[Delta | None] = [None] * slots

    def set(self, slot: int, delta: Delta | None) -> None:
        """Puts a delta into a slot, or empties it. Raises ``ValueError`` for a delta of another shape."""
        if delta is not None:
            self.shape.check(delta)
        self.deltas[slot] = delta


def adapted(
    linear: Linear,
    products: torch.Tensor,
    x: torch.Tensor,
    args: StepArgs,
    *,
    tokens: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``products`` (rows, outputs) of ``x`` (rows, columns) with what adapters add.

    ``tokens`` (rows,): each row's token of the step. ``x`` of an embedding is each row's token id. ``bias``: the
    matrix's own, which ``products`` contains.
    """
    uses, table = args.uses, linear.deltas
    if uses is None or table is None:
        return products
    assert isinstance(table, ReferenceDeltaTable)
    products = products.clone()
    for row, token in enumerate(tokens.tolist()):
        for use in range(uses.starts[token], uses.starts[token + 1]):
            slot = uses.slots[use]
            delta = table.deltas[slot]
            if delta is not None:
                weight = uses.weights[use] * _scaling(linear, args, token, slot)
                products[row] = _added(delta, products[row], x[row], weight, table.shape, bias)
    return products


def _scaling(linear: Linear, args: StepArgs, token: int, slot: int) -> float:
    if args.scalings is None or linear.scaling_layer < 0:
        return 1.0
    _, layers, slots = args.scalings.shape
    return float(args.scalings.values[(token * layers + linear.scaling_layer) * slots + slot])


def _added(
    delta: Delta, product: torch.Tensor, x: torch.Tensor, weight: float, shape: DeltaShape, bias: torch.Tensor | None
) -> torch.Tensor:
    a, b = plain(delta.a), plain(delta.b)
    inner = a.rows_of(x[None]) if shape.lookup else a.product(x[None])
    [addition] = b.product(inner * (delta.scale * weight))
    if delta.bias is not None:
        addition = addition + weight * tensor_of(delta.bias)
    if delta.row_factor is None:
        return torch.add(product, addition)
    own = torch.zeros_like(product) if bias is None else bias
    return torch.addcmul(own, tensor_of(delta.row_factor), product - own + addition)
