"""Runs one operation on any backend: matrices of random weights in, tensors out."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Literal

import numpy as np
import pytest
import torch
from mistralrs_kernels import cpu

from mistralrs.ops.arena import Arena, buffer, buffers_bytes
from mistralrs.ops.backend import Activation, Backend, Epilogue, Norm
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.linear import AdapterUse, Delta, DeltaShape, Linear
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.reference_backend import ReferenceBackend
from mistralrs.ops.weight import Matrix
from mistralrs.ops.workspace import Sizes, StepArgs
from mistralrs.quant.dequantize import dequantize
from mistralrs.quant.types import TYPES
from tests.buffers import tensor_of
from tests.quant.blocks import odd_rows, sane_rows

FLOATS = frozenset({"F32", "F16", "BF16"})


def _instruction_sets() -> list[str]:
    try:
        return list(cpu.tables(by_name=True))
    except cpu.KernelError:
        return []


ISAS = _instruction_sets()
"""The instruction sets that this machine and build run, the best first; empty without the compiled kernels."""

for_every_isa = pytest.mark.parametrize(
    "isa", ISAS or [pytest.param("", marks=pytest.mark.skip(reason="the compiled kernels are not here"))]
)


@cache
def native(isa: str, *, threads: int = 2) -> NativeBackend:
    return NativeBackend(threads=threads, isa=isa)


@cache
def reference() -> ReferenceBackend:
    return ReferenceBackend()


@cache
def random_matrix(
    name: str, *, rows: int, columns: int, seed: int, bias: bool = False, ordered: bool = False, odd: bool = False
) -> Matrix:
    """Returns a matrix of type ``name`` with weights of deviation columns ** -0.5, or with odd scales and any bytes."""
    type_ = TYPES[name]
    random = np.random.default_rng(seed)
    if odd:
        data = odd_rows(type_, rows=rows, columns=columns, seed=seed)
    elif name in FLOATS:
        weights = torch.from_numpy(random.standard_normal((rows, columns), dtype=np.float32) * columns**-0.5)
        dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        data = weights.to(dtypes[name]).view(torch.uint8).numpy()
    else:
        data = sane_rows(type_, rows=rows, columns=columns, seed=seed, deviation=columns**-0.5)
    return Matrix(
        name,
        type_,
        rows,
        columns,
        np.ascontiguousarray(data).data.cast("B"),
        array("i", Random(seed).sample(range(rows), rows)) if ordered else None,
        array("f", random.standard_normal(rows).tolist()) if bias else None,
    )


def in_place(matrix: Matrix) -> Matrix:
    """Returns the matrix as one that stays where it lies, which is at an odd address."""
    return replace(matrix, data=memoryview(bytearray(b"\0") + matrix.data)[1:], in_place=True)


def decoded(matrix: Matrix) -> torch.Tensor:
    """Returns (rows, columns) float32 by the definition of the type, in the given order."""
    raw = torch.frombuffer(matrix.data, dtype=torch.uint8).view(-1, matrix.type.row_bytes(matrix.columns))
    weights = dequantize(matrix.type, raw, matrix.columns)
    return weights if matrix.order is None else weights[torch.tensor(matrix.order)]


def random_values(*shape: int, seed: int) -> torch.Tensor:
    """Returns normal numbers of which one in fifty is ten times larger, as in activations."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.02, values * 10, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """An adapter's addition to one matrix, before a backend has placed it."""

    a: Matrix
    b: Matrix
    scale: float = 1.0
    bias: torch.Tensor | None = None
    row_factor: torch.Tensor | None = None

    def place(self, backend: Backend) -> Delta:
        vectors = [None if v is None else backend.vector(v.tolist()) for v in (self.bias, self.row_factor)]
        return Delta(backend.place(self.a), backend.place(self.b), self.scale, *vectors)


SLOTS = 4
"""Of the models in these tests."""


def adapted(backend: Backend, matrix: Matrix, deltas: Sequence[LowRank | None], *, lookup: bool = False) -> Linear:
    """A placed matrix whose slots hold ``deltas``; the first index of the scalings is its own."""
    if not deltas:
        return Linear(backend.place(matrix))
    table = backend.delta_table(SLOTS, DeltaShape(matrix.rows, matrix.columns, lookup))
    for slot, delta in enumerate(deltas):
        table.set(slot, delta and delta.place(backend))
    return Linear(backend.place(matrix), table, scaling_layer=0)


def adapted_step(
    uses: Sequence[Sequence[AdapterUse]], *, ids: Sequence[int] | None = None, logits_indices: Sequence[int] = ()
) -> StepArgs:
    """A step in which every token is a sequence of its own with its own uses."""
    tokens = len(uses)
    args = StepArgs(replace(_sizes(tokens, max(1, len(logits_indices)), tokens, 1), adapter_slots=SLOTS))
    args.set(
        tokens=ids or [0] * tokens,
        positions=[0] * tokens,
        slot_mapping=[[0] * tokens],
        query_start_loc=list(range(tokens + 1)),
        seq_lens=[1] * tokens,
        block_tables=[[[0]] * tokens],
        logits_indices=logits_indices,
        adapters=uses,
    )
    return args


def step_args(*, tokens: int, logits_indices: Sequence[int] = (), max_seqs: int = 1, max_blocks: int = 1) -> StepArgs:
    """Returns a step of so many tokens of one sequence, for operations that read nothing else."""
    args = StepArgs(_sizes(tokens, max(1, len(logits_indices)), max_seqs, max_blocks))
    positions = list(range(tokens))
    args.set(
        tokens=[0] * tokens,
        positions=positions,
        slot_mapping=[positions],
        query_start_loc=[0, tokens],
        seq_lens=[tokens],
        block_tables=[[[0] * max_blocks]],
        logits_indices=logits_indices,
    )
    return args


def _sizes(tokens: int, logits: int, seqs: int, blocks: int) -> Sizes:
    return Sizes(
        max_tokens=tokens, max_seqs=seqs, max_logits=logits, max_blocks=blocks,
        hidden=1, q=1, kv=1, ffn=1, vocab=1, rotary=(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalization:
    """A norm's values, before they stand in an arena."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5

    def bind(self, arena: Arena) -> Norm:
        bias = None if self.bias is None else filled(arena, self.bias)
        return Norm(filled(arena, self.weight), self.eps, self.kind, bias)


def filled(arena: Arena, values: torch.Tensor) -> Buffer:
    result = buffer(arena, *values.shape)
    tensor_of(result).copy_(values)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A call of ``project``; ``run`` makes it on a backend."""

    matrices: tuple[Matrix, ...]
    x: torch.Tensor
    norm: Normalization | None = None
    epilogue: Epilogue = "store"
    activation: Activation = "silu"
    outlier_threshold: float = math.inf
    logits_indices: tuple[int, ...] | None = None
    softcap: float = 0.0
    scale: float = 1.0
    before: float = 0.0
    """The content of the outputs before the call."""
    deltas: tuple[tuple[LowRank | None, ...], ...] = ()
    """Of each member, by slot."""
    uses: tuple[tuple[AdapterUse, ...], ...] = ()
    """Of each token; empty: no adapter acts."""

    def only(self, *tokens: int) -> Projection:
        """Returns the same call with these tokens alone."""
        return replace(self, x=self.x[list(tokens)], uses=tuple(self.uses[t] for t in tokens) if self.uses else ())

    def run(self, backend: Backend) -> list[torch.Tensor]:
        tokens, columns = self.x.shape
        rows_out = tokens if self.logits_indices is None else max(1, len(self.logits_indices))
        members = self.matrices[:1] if self.epilogue == "gated" else self.matrices
        shapes = [(rows_out, matrix.rows) for matrix in members]
        arena = Arena(buffers_bytes(*shapes, (tokens, columns), (columns,), (columns,)))
        deltas = self.deltas or ((),) * len(self.matrices)
        linears = [adapted(backend, matrix, slots) for matrix, slots in zip(self.matrices, deltas, strict=True)]
        outs = [filled(arena, torch.full(shape, self.before)) for shape in shapes]
        op = backend.project(
            linears,
            filled(arena, self.x),
            outs,
            norm=self.norm.bind(arena) if self.norm else None,
            epilogue=self.epilogue,
            activation=self.activation,
            outlier_threshold=self.outlier_threshold,
            logits_only=self.logits_indices is not None,
            softcap=self.softcap,
            scale=self.scale,
        )
        indices = self.logits_indices or ()
        args = step_args(tokens=tokens, logits_indices=indices)
        if self.uses:
            args = adapted_step(self.uses, logits_indices=indices)
        backend.program([op], args)()
        return [tensor_of(out).clone() for out in outs]


def normed(backend: Backend, x: torch.Tensor, norm: Normalization) -> torch.Tensor:
    """Returns the norm of each row as the backend computes it: ``add_norm`` to zeros."""
    arena = Arena(buffers_bytes(x.shape, x.shape, x.shape[-1:], x.shape[-1:]))
    target = filled(arena, torch.zeros_like(x))
    op = backend.add_norm(filled(arena, x), target, norm.bind(arena))
    backend.program([op], step_args(tokens=len(x)))()
    return tensor_of(target).clone()
