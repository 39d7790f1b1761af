"""Checks that weights and buffers are as the CPU kernels take for granted, made when an operation is bound.

A kernel looks at no shape and no type: it would read past the end of its inputs. The loader never asks for such
an operation; should it do so by mistake, the model is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mistralrs.errors import LoadError
from mistralrs.ops.backend import Epilogue, KvShape, Norm, Rotary, check_kv_dtype
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.weight import Matrix
from mistralrs.ops.workspace import Workspace
from mistralrs.quant.types import I8, TYPES, QuantType

FLOATS = frozenset({"F32", "F16", "BF16"})
MAX_COLUMNS = 1 << 18
"""The widest row: kernels keep a normed one on a thread's stack."""
MAX_ROWS = (1 << 31) - 16
"""The most rows of a matrix: kernels count them in 32 bits, in panels of 16."""
MAX_HEAD_DIM = 4096
"""Kernels keep 64 rows of a head on a thread's stack."""
MAX_EXPERTS = 1024
MAX_MEMBERS = 4
"""The most matrices of a projection."""
MAX_ROTARIES = 2

_HINT = "MISTRALRS_NO_NATIVE=1 computes without the kernels, slower"


class Placed(Protocol):
    """A packed matrix with the name that errors give it."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> QuantType: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...


def check_matrix(name: str, type: QuantType, *, rows: int, columns: int) -> None:
    """Raises ``LoadError`` for a matrix that has no packed form."""
    if type.name not in TYPES and type is not I8:
        raise LoadError(f"{name}: the kernels cannot read the type {type.name}", hint=_HINT)
    if columns % type.block_len:
        raise LoadError(f"{name}: {columns} columns are no multiple of {type.name}'s block of {type.block_len}")
    if not 1 <= columns <= MAX_COLUMNS or not 1 <= rows <= MAX_ROWS:
        reason = f"{name}: the kernels take rows of 1 to {MAX_COLUMNS} columns, not {rows} x {columns}"
        raise LoadError(reason, hint=_HINT)


def check_stored(matrix: Matrix) -> None:
    """Raises ``LoadError`` for a matrix with fewer bytes, or another number of biases, than it has rows."""
    needed = matrix.rows * matrix.type.row_bytes(matrix.columns)
    if len(matrix.data) < needed:
        raise LoadError(f"{matrix.name}: has {len(matrix.data)} bytes, its {matrix.rows} rows take {needed}")
    if matrix.bias is not None and len(matrix.bias) != matrix.rows:
        raise LoadError(f"{matrix.name}: has {len(matrix.bias)} biases for {matrix.rows} rows")


def check_project(
    weights: Sequence[Placed], x: Buffer, outs: Sequence[Buffer], norm: Norm | None, epilogue: Epilogue
) -> None:
    """Raises ``LoadError`` for members that do not read ``x`` or do not write ``outs``, and for results over ``x``."""
    if not 1 <= len(weights) <= MAX_MEMBERS:
        raise LoadError(f"a projection of {len(weights)} matrices is not one of 1 to {MAX_MEMBERS}")
    for weight in weights:
        _check_shape(weight, weight.rows, x.shape[-1])
    written = weights[:1] if epilogue == "gated" else weights
    if epilogue == "gated" and (len(weights) != 2 or weights[1].rows != weights[0].rows):
        raise LoadError(f"{weights[0].name}: a gate and what it gates are two matrices of one shape")
    if len(outs) != len(written):
        raise LoadError(f"{weights[0].name}: {len(written)} results for {len(outs)} buffers")
    for weight, out in zip(written, outs, strict=True):
        _check_shape(weight, out.shape[-1], x.shape[-1])
        # threads read x while others write results
        if out.address < x.address + len(x.span.bytes) and x.address < out.address + len(out.span.bytes):
            raise LoadError(f"{weight.name}: the results overwrite what is read")
    check_norm(norm, x.shape[-1])


def check_embed(weight: Placed, work: Workspace, rotaries: Sequence[Rotary]) -> None:
    """Raises ``LoadError`` for rows that are no activations, too few rows, or more rotary tables than a step has."""
    _check_shape(weight, max(weight.rows, work.sizes.vocab), work.x.shape[-1])
    if len(rotaries) > MAX_ROTARIES:
        raise LoadError(f"{len(rotaries)} rotary embeddings are more than the kernels' {MAX_ROTARIES}", hint=_HINT)


def check_kv(shape: KvShape) -> None:
    """Raises ``LoadError`` for heads that are wider than the kernels' rows."""
    if not 1 <= shape.head_dim <= MAX_HEAD_DIM:
        raise LoadError(f"heads of {shape.head_dim} are not 1 to {MAX_HEAD_DIM} wide, as the kernels' are", hint=_HINT)
    check_kv_dtype(shape.head_dim, shape.dtype)


def check_attend(
    work: Workspace,
    kv: KvShape,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary: Rotary | None,
    norms: Sequence[Norm | None],
    full_norms: bool,
) -> None:
    """Raises ``LoadError`` for heads that are not those of the buffers and of the cache, or norms of another kind.

    ``norms``: of q and of k; ``full_norms``: of all their heads.
    """
    widths = work.q.shape[-1], work.k.shape[-1], work.v.shape[-1], work.attended.shape[-1]
    wanted = heads * head_dim, kv_heads * head_dim, kv_heads * head_dim, heads * head_dim
    if widths != wanted or heads % kv_heads or (kv.kv_heads, kv.head_dim) != (kv_heads, head_dim):
        raise LoadError(f"{heads} heads and {kv_heads} KV heads of {head_dim} do not fit the model's buffers")
    if rotary is not None and 2 * rotary.inv_freq.shape[0] > head_dim:
        raise LoadError(f"a rotary width of {2 * rotary.inv_freq.shape[0]} does not fit heads of {head_dim}")
    given = [norm for norm in norms if norm is not None]
    for norm, count in zip(norms, (heads, kv_heads), strict=True):
        check_norm(norm, count * head_dim if full_norms else head_dim)
    for norm in given:
        if norm.kind != "rms" or norm.bias is not None or norm.eps != given[0].eps:
            raise LoadError("q and k can be normed by RMS alone, without a bias", hint=_HINT)


def check_norm(norm: Norm | None, columns: int) -> None:
    """Raises ``LoadError`` for a norm of other rows than those of ``columns``."""
    if norm is None:
        return
    for values in (norm.weight, norm.bias):
        if values is not None and values.shape != (columns,):
            raise LoadError(f"a norm of {values.shape} weights does not fit rows of {columns}")


def check_moe(
    work: Workspace,
    *,
    norm: Norm,
    router: Placed,
    gate: Sequence[Placed],
    up: Sequence[Placed],
    down: Sequence[Placed],
    used: int,
) -> None:
    """Raises ``LoadError`` for a router that is not stored as floats, and for experts that do not fit together."""
    hidden, experts = work.x.shape[-1], len(gate)
    if not 1 <= used <= experts <= MAX_EXPERTS or len(up) != experts or len(down) != experts:
        raise LoadError(f"{router.name}: {used} of {experts} experts cannot be used", hint=_HINT)
    if router.type.name not in FLOATS:
        raise LoadError(f"{router.name}: the kernels read a router as floats, not as {router.type.name}", hint=_HINT)
    _check_shape(router, experts, hidden)
    for first, second, last in zip(gate, up, down, strict=True):
        _check_shape(first, gate[0].rows, hidden)
        _check_shape(second, gate[0].rows, hidden)
        _check_shape(last, hidden, gate[0].rows)
    check_norm(norm, hidden)


def _check_shape(weight: Placed, rows: int, columns: int) -> None:
    if (weight.rows, weight.columns) != (rows, columns):
        raise LoadError(f"{weight.name}: is {weight.rows} x {weight.columns}, expected {rows} x {columns}")
