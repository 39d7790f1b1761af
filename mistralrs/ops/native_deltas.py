"""Tables of deltas as the CPU kernels read them, and the uses of a step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from mistralrs_kernels import cpu

from mistralrs.ops.arena import Arena
from mistralrs.ops.buffer import Span
from mistralrs.ops.linear import Delta, DeltaShape, Linear
from mistralrs.ops.workspace import StepArgs


class DeltaScratch:
    """Describes the uses of a step to the kernels.

    One scratch serves all operations of a backend, of which only one runs at a time. It grows with the largest step.
    """

    def __init__(self) -> None:
        self._rows_per_use = 1
        self._max_rank = 0
        self._slots: int | None = None
        self._span: Span | None = None

    def include_op(self, rows_per_use: int) -> None:
        """Makes room for an operation that writes so many rows for each use."""
        self._rows_per_use = max(self._rows_per_use, rows_per_use)

    def include_table(self, slots: int) -> None:
        """Raises ``ValueError`` for a table of another number of slots than the tables before it."""
        if self._slots not in (None, slots):
            raise ValueError(f"a table of {slots} adapter slots does not fit others of {self._slots}")
        self._slots = slots

    def include_rank(self, rank: int) -> None:
        """Makes room for deltas of this rank."""
        self._max_rank = max(self._max_rank, rank)

    def describe(self, step: cpu.Step, args: StepArgs) -> None:
        """Sets the fields of ``step`` that say which adapters act."""
        uses = args.uses
        step.use_start = None
        if uses is None or not self._max_rank:  # without any delta there is nothing to add
            return
        self.include_table(args.sizes.adapter_slots)
        need = 4 * len(uses.slots) * self._rows_per_use * self._max_rank
        if self._span is None or len(self._span.bytes) < need:
            self._span = Arena(need + 64).take(need)
        step.use_start = uses.starts.buffer_info()[0]
        step.use_slots = uses.slots.buffer_info()[0]
        step.use_weights = uses.weights.buffer_info()[0]
        step.delta_scratch = self._span.address
        step.num_slots, step.max_rank = args.sizes.adapter_slots, self._max_rank
        step.only_slot = uses.only_slot
        step.scalings = args.scalings.address if args.scalings else None
        step.scaling_layers = args.scalings.shape[1] if args.scalings else 0


class NativeDeltaTable:
    """The deltas of one matrix, one struct a slot. The kernels read the structs during a step."""

    def __init__(self, slots: int, shape: DeltaShape, scratch: DeltaScratch) -> None:
        scratch.include_table(slots)
        self.shape = shape
        self.structs = (cpu.Delta * slots)()
        self._kept: list[Delta | None] = [None] * slots
        self._scratch = scratch

    def set(self, slot: int, delta: Delta | None) -> None:
        """Puts a delta into a slot, or empties it. Raises ``ValueError`` for a delta of another shape."""
        if delta is None:
            self.structs[slot] = cpu.Delta()
        else:
            self.shape.check(delta)
            self._scratch.include_rank(delta.b.columns)
            self.structs[slot] = cpu.Delta(
                a=ctypes.pointer(weight_struct(delta.a)),
                b=ctypes.pointer(weight_struct(delta.b)),
                bias=delta.bias.address if delta.bias else None,
                row_factor=delta.row_factor.address if delta.row_factor else None,
                scale=delta.scale,
            )
        self._kept[slot] = delta


def weight_struct(weight: object) -> cpu.Weight:
    """The kernels' struct of a placed matrix."""
    struct = getattr(weight, "struct", None)
    assert isinstance(struct, cpu.Weight)
    return struct


def linear_struct(linear: Linear) -> cpu.Linear:
    """The kernels' struct of a matrix with its table. The matrix and the table must be kept beside it."""
    table = linear.deltas
    assert table is None or isinstance(table, NativeDeltaTable)
    deltas = ctypes.cast(table.structs, ctypes.POINTER(cpu.Delta)) if table else None
    return cpu.Linear(ctypes.pointer(weight_struct(linear.weight)), deltas, linear.scaling_layer)


def linear_structs(linears: Sequence[Linear]) -> ctypes.Array[cpu.Linear]:
    """The structs of matrices, one behind the other."""
    return (cpu.Linear * len(linears))(*(linear_struct(linear) for linear in linears))
