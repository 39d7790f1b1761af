"""The operations in plain torch: what the kernels must equal, and what runs where there are none.

Each operation has the same constructor as its native twin and writes the same buffers. Products emulate the kernels'
int8 activations, so that both differ by the rounding of float32 sums alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch

from mistralrs.ops.arena import Buffer
from mistralrs.ops.backend import Activation, Finish, KvShape, Norm, Op
from mistralrs.ops.memory import available_bytes
from mistralrs.ops.weight import Matrix, Weight
from mistralrs.ops.workspace import StepArgs, Workspace
from mistralrs.quant.reference import dequantise
from mistralrs.quant.types import QuantType

_FLOATS = frozenset({"F32", "F16", "BF16"})
_ROWS_AT_ONCE = 4096


class ReferenceWeight:
    """A matrix in the file's own bytes; decoded when used, or kept decoded while that fits the memory."""

    def __init__(self, matrix: Matrix, *, keep_dense: bool) -> None:
        self.type: QuantType = matrix.type
        self.rows = matrix.rows
        self.columns = matrix.columns
        row_bytes = matrix.type.row_bytes(matrix.columns)
        self._raw = torch.frombuffer(matrix.data, dtype=torch.uint8).view(-1, row_bytes)
        self._order = torch.tensor(matrix.order) if matrix.order is not None else None
        self.bias = torch.tensor(matrix.bias) if matrix.bias is not None else None
        self._dense = self._decode(0, self.rows) if keep_dense else None
        self.nbytes = self.rows * self.columns * 4 if keep_dense else self.rows * row_bytes

    def _decode(self, start: int, end: int) -> torch.Tensor:
        raw = self._raw[start:end] if self._order is None else self._raw[self._order[start:end]]
        return dequantise(self.type, raw, self.columns)

    def rows_of(self, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), columns) float32 rows."""
        if self._dense is not None:
            return self._dense[ids]
        picked = ids if self._order is None else self._order[ids]
        return dequantise(self.type, self._raw[picked], self.columns)

    def dense(self) -> torch.Tensor:
        return self._dense if self._dense is not None else self._decode(0, self.rows)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x (tokens, columns) -> (tokens, rows), plus the bias."""
        if self._dense is not None:
            y = x @ self._dense.T
        else:
            starts = range(0, self.rows, _ROWS_AT_ONCE)
            y = torch.cat([x @ self._decode(s, min(s + _ROWS_AT_ONCE, self.rows)).T for s in starts], dim=1)
        return y if self.bias is None else y + self.bias


class ReferenceKv:
    """The cache as two half-precision tensors (layers, blocks, block_size, kv_heads, head_dim)."""

    def __init__(self, shape: KvShape) -> None:
        size = (shape.layers, shape.num_blocks, shape.block_size, shape.kv_heads, shape.head_dim)
        self.k = torch.zeros(size, dtype=torch.float16)
        self.v = torch.zeros(size, dtype=torch.float16)
        self.nbytes = 4 * prod(size)


def round_to_int8(x: torch.Tensor, terms: int) -> torch.Tensor:
    """What is left of x (tokens, columns) after rounding to ``terms`` int8 terms, each with one scale for 32 columns."""
    groups = x.view(x.shape[0], -1, 32)
    amax = groups.abs().amax(-1, keepdim=True)
    scale = amax / 127
    inverse = torch.where(amax > 0, 127 / amax, 0)
    first = torch.round(groups * inverse)
    rounded = first * scale
    if terms == 2:
        rest = groups - rounded
        rounded = rounded + torch.round(rest * (inverse * 254)) * (scale / 254)
    return rounded.view_as(x)


def rms_norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight.tensor


class _Project:
    def __init__(
        self,
        weights: Sequence[ReferenceWeight],
        x: Buffer,
        outs: Sequence[Buffer],
        norm: Norm | None,
        finish: Finish,
        terms: int,
        logits_only: bool,
    ) -> None:
        self.weights, self.x, self.outs = weights, x, outs
        self.norm, self.finish, self.terms, self.logits_only = norm, finish, terms, logits_only

    def __call__(self, args: StepArgs) -> None:
        x = self.x.tensor[: args.num_tokens]
        if self.logits_only:
            x = x[args.arrays["logit_rows"].tensor[: args.num_logits]]
        if not len(x):
            return
        if self.norm:
            x = rms_norm(x, self.norm)
        rounded = None
        values = []
        for weight in self.weights:
            if weight.type.name in _FLOATS:
                values.append(weight.product(x))
                continue
            if rounded is None:
                rounded = round_to_int8(x, self.terms)
            values.append(weight.product(rounded))
        if self.finish == "gated":
            values = [torch.nn.functional.silu(values[0]) * values[1]]
        for value, out in zip(values, self.outs, strict=True):
            target = out.tensor[: len(value)]
            target.copy_(target + value if self.finish == "add" else value)


class _Embed:
    def __init__(self, weight: ReferenceWeight, work: Workspace, inv_freq: Buffer, rotary_scale: float) -> None:
        self.weight, self.work, self.inv_freq, self.rotary_scale = weight, work, inv_freq, rotary_scale

    def __call__(self, args: StepArgs) -> None:
        n = args.num_tokens
        self.work.x.tensor[:n] = self.weight.rows_of(args.arrays["tokens"].tensor[:n].long())
        positions = args.arrays["positions"].tensor[:n].float()
        angles = (positions[:, None] * self.inv_freq.tensor).double()  # the product in float32, as models were trained
        self.work.rotary.tensor[:n, 0] = torch.cos(angles).float() * self.rotary_scale
        self.work.rotary.tensor[:n, 1] = torch.sin(angles).float() * self.rotary_scale


class _Attend:
    def __init__(
        self, work: Workspace, kv: ReferenceKv, layer: int, heads: int, kv_heads: int, head_dim: int, scale: float
    ) -> None:
        self.work, self.k, self.v = work, kv.k[layer], kv.v[layer]
        self.heads, self.kv_heads, self.head_dim, self.scale = heads, kv_heads, head_dim, scale

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        n, half = len(x), self.work.sizes.rotary_half
        cosine, sine = self.work.rotary.tensor[:n].unbind(1)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        cosine, sine = cosine[:, None], sine[:, None]
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], dim=-1)

    def __call__(self, args: StepArgs) -> None:
        n, work, arrays = args.num_tokens, self.work, args.arrays
        q = self._rotate(work.q.tensor[:n].unflatten(-1, (self.heads, -1)))  # (tokens, heads, head_dim)
        k = self._rotate(work.k.tensor[:n].unflatten(-1, (self.kv_heads, -1)))
        v = work.v.tensor[:n].unflatten(-1, (self.kv_heads, -1))
        slots = arrays["slots"].tensor[:n].long()
        block_size = self.k.shape[1]
        self.k[slots // block_size, slots % block_size] = k.clamp(-65504, 65504).half()
        self.v[slots // block_size, slots % block_size] = v.clamp(-65504, 65504).half()
        starts = arrays["seq_starts"].tensor[: args.num_seqs + 1].tolist()
        for s, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
            length = int(arrays["context_lens"].tensor[s])
            blocks = arrays["block_tables"].tensor[s, : -(-length // block_size)].long()
            keys = self.k[blocks].flatten(0, 1)[:length].float()  # (length, kv_heads, head_dim)
            values = self.v[blocks].flatten(0, 1)[:length].float()
            rows = q[start:end].unflatten(1, (self.kv_heads, -1))  # (tokens, kv_heads, group, head_dim)
            scores = torch.einsum("tkgd,skd->kgts", rows * self.scale, keys)
            seen = torch.arange(length) <= arrays["positions"].tensor[start:end, None]  # (tokens, length)
            weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
            out = torch.einsum("kgts,skd->tkgd", weights, values)
            work.attended.tensor[start:end] = out.flatten(1)


class ReferenceBackend:
    """Everything in torch. Weights stay decoded when they are small beside the memory that is free."""

    def __init__(self, *, threads: int | None = None, isa: str | None = None) -> None:
        self.name = "cpu torch"
        self.threads = threads or torch.get_num_threads()
        self._keep_dense = False
        if threads:
            torch.set_num_threads(threads)

    def placed_bytes(self, matrix: Matrix) -> int:
        return matrix.rows * matrix.columns * 4

    def reserve(self, nbytes: int) -> None:
        self._keep_dense = nbytes < available_bytes() // 2

    def place(self, matrix: Matrix) -> ReferenceWeight:
        return ReferenceWeight(matrix, keep_dense=self._keep_dense)

    def kv_cache(self, shape: KvShape) -> ReferenceKv:
        return ReferenceKv(shape)

    def embed(self, weight: Weight, work: Workspace, *, inv_freq: Buffer, rotary_scale: float) -> Op:
        return _Embed(_plain(weight), work, inv_freq, rotary_scale)

    def project(
        self,
        weights: Sequence[Weight],
        x: Buffer,
        outs: Sequence[Buffer],
        *,
        norm: Norm | None = None,
        finish: Finish = "store",
        activation: Activation = "silu",
        terms: int = 1,
        logits_only: bool = False,
    ) -> Op:
        return _Project([_plain(weight) for weight in weights], x, outs, norm, finish, terms, logits_only)

    def attend(
        self, work: Workspace, kv: object, *, layer: int, heads: int, kv_heads: int, head_dim: int, scale: float
    ) -> Op:
        assert isinstance(kv, ReferenceKv)
        return _Attend(work, kv, layer, heads, kv_heads, head_dim, scale)

    def program(self, ops: Sequence[Op], args: StepArgs) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            for op in ops:
                if args.abort.value:
                    return
                op(args)

        return run


def _plain(weight: Weight) -> ReferenceWeight:
    assert isinstance(weight, ReferenceWeight)
    return weight
