"""The reference implementation of the operations in plain torch: the kernels must equal it, and it runs where there are
none.

Each operation has the same constructor as the native one and writes the same buffers. Products emulate the kernels'
int8 activations, so that both differ by the rounding of float32 sums alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch

from mistralrs.errors import LoadError
from mistralrs.ops.backend import Activation, Epilogue, KvShape, Norm, Op, Rotary, Temperature
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.host_memory import HostMemory
from mistralrs.ops.kv_groups import first_block
from mistralrs.ops.linear import DeltaShape, Linear
from mistralrs.ops.memory import available_bytes
from mistralrs.ops.reference_deltas import ReferenceDeltaTable, adapted
from mistralrs.ops.weight import Matrix, Weight
from mistralrs.ops.workspace import StepArgs, Workspace
from mistralrs.quant import scale_search
from mistralrs.quant.dequantize import dequantize
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
        return dequantize(self.type, raw, self.columns)

    def rows_of(self, ids: torch.Tensor) -> torch.Tensor:
        """(len(ids), columns) float32 rows."""
        if self._dense is not None:
            return self._dense[ids]
        picked = ids if self._order is None else self._order[ids]
        return dequantize(self.type, self._raw[picked], self.columns)

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
    """The cache as two tensors (blocks, block_size, kv_heads, head_dim) a layer."""

    def __init__(self, shape: KvShape) -> None:
        sizes = [(blocks, shape.block_size, shape.kv_heads, shape.head_dim) for blocks in shape.blocks]
        dtype = torch.float16 if shape.dtype == "f16" else torch.float32
        self.k = [torch.zeros(size, dtype=dtype) for size in sizes]
        self.v = [torch.zeros(size, dtype=dtype) for size in sizes]
        self.nbytes = 2 * sum(map(prod, sizes)) * dtype.itemsize

    def export_block(self, layers: Sequence[int], block: int) -> bytes:
        return b"".join(array[block].numpy().tobytes() for layer in layers for array in (self.k[layer], self.v[layer]))

    def import_block(self, layers: Sequence[int], block: int, data: bytes) -> None:
        arrays = [array[block] for layer in layers for array in (self.k[layer], self.v[layer])]
        size = sum(array.nbytes for array in arrays)
        if len(data) != size:
            raise ValueError(f"a block of {len(layers)} layers has {size} bytes, not {len(data)}")
        stored = torch.frombuffer(bytearray(data), dtype=self.k[0].dtype).split([array.numel() for array in arrays])
        for array, values in zip(arrays, stored, strict=True):
            array.copy_(values.view_as(array))


def round_to_int8(x: torch.Tensor, outlier_threshold: float) -> torch.Tensor:
    """x (tokens, columns) after rounding to int8 with one scale for 32 columns.

    Groups whose largest value is above ``outlier_threshold`` times the average of their row's are two-term: they are
    rounded to an int8 value and its residual.
    """
    groups = x.view(x.shape[0], -1, 32)
    amax = groups.abs().amax(-1, keepdim=True)
    scale = amax / 127
    # a true division, not 127 times the reciprocal as torch would make of 127 / amax; the bound keeps it finite
    inverse = torch.where(amax > 1e-34, torch.full_like(amax, 127) / amax, 0)
    first = torch.round(groups * inverse)
    # as one fused multiply-add: the product is exact in float64, and then so is the difference
    left = (groups.double() - first.double() * scale.double()).float()
    # in float64, where no order of summation makes a difference that could be seen
    two_term = amax > outlier_threshold * amax.double().mean(1, keepdim=True)
    residual = torch.where(two_term, torch.round(left * (inverse * 254)) * (scale / 254), 0)
    return (first * scale + residual).view_as(x)


def normalize(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """``norm`` over the last dimension."""
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight.tensor
    return y + norm.bias.tensor if norm.bias else y


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(x / cap) * cap if cap > 0 else x


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "gelu": torch.nn.functional.gelu,
}


def products(
    linears: Sequence[Linear], x: torch.Tensor, outlier_threshold: float, args: StepArgs, *, tokens: torch.Tensor
) -> list[torch.Tensor]:
    """x (rows, columns) times each matrix, with what adapters add; int8 activations for the quantized ones.

    ``tokens`` (rows,): each row's token of the step.
    """
    rounded = None
    values = []
    for linear in linears:
        weight = _plain(linear.weight)
        if weight.type.name in _FLOATS:
            value = weight.product(x)
        else:
            if rounded is None:
                rounded = round_to_int8(x, outlier_threshold)
            value = weight.product(rounded)
        values.append(adapted(linear, value, x, args, tokens=tokens, bias=weight.bias))
    return values


@dataclass(frozen=True, slots=True)
class _Project:
    linears: Sequence[Linear]
    x: Buffer
    outs: Sequence[Buffer]
    norm: Norm | None
    epilogue: Epilogue
    activation: Activation
    outlier_threshold: float
    logits_only: bool
    softcap: float
    scale: float

    def __call__(self, args: StepArgs) -> None:
        tokens = torch.arange(args.num_tokens)
        if self.logits_only:
            tokens = args.arrays["logits_indices"].tensor[: args.num_logits]
        if not len(tokens):
            return
        x = self.x.tensor[tokens]
        x = normalize(x, self.norm) if self.norm else x
        values = products(self.linears, x, self.outlier_threshold, args, tokens=tokens)
        activate = ACTIVATIONS[self.activation]
        if self.epilogue == "gated":
            values = [activate(values[0]) * values[1]]
        elif self.epilogue == "activate":
            values = [activate(value) for value in values]
        for value, out in zip(values, self.outs, strict=True):
            target = out.tensor[: len(value)]
            capped = soft_cap(value * self.scale, self.softcap)
            target.copy_(target + capped if self.epilogue == "add" else capped)


@dataclass(frozen=True, slots=True)
class _Embed:
    linear: Linear
    work: Workspace
    rotaries: Sequence[Rotary]
    scale: float

    def __call__(self, args: StepArgs) -> None:
        n = args.num_tokens
        ids = args.arrays["tokens"].tensor[:n].long()
        rows = _plain(self.linear.weight).rows_of(ids)
        self.work.x.tensor[:n] = adapted(self.linear, rows, ids, args, tokens=torch.arange(n)) * self.scale
        positions = args.arrays["positions"].tensor[:n].float()
        for rotary in self.rotaries:
            # the product in float32, as models were trained
            angles = (positions[:, None] * rotary.inv_freq.tensor).double()
            rotary.table.tensor[:n, 0] = torch.cos(angles).float() * rotary.scale
            rotary.table.tensor[:n, 1] = torch.sin(angles).float() * rotary.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attend:
    work: Workspace
    k: torch.Tensor
    v: torch.Tensor
    group: int
    heads: int
    kv_heads: int
    scale: float
    rotary: Rotary | None
    q_norm: Norm | None
    k_norm: Norm | None
    full_norms: bool
    window: int
    softcap: float
    temperature: Temperature | None

    def _normed(self, x: torch.Tensor, norm: Norm | None, heads: int) -> torch.Tensor:
        """x (tokens, heads * head_dim) -> (tokens, heads, head_dim), normed over all heads or over each."""
        if norm is not None and self.full_norms:
            x = normalize(x, norm)
        x = x.view(len(x), heads, -1)
        return x if norm is None or self.full_norms else normalize(x, norm)

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        if self.rotary is None:
            return x
        half = self.rotary.inv_freq.shape[0]
        cosine, sine = self.rotary.table.tensor[: len(x), :, None].unbind(1)  # (tokens, 1, half)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], dim=-1)

    def __call__(self, args: StepArgs) -> None:
        n, work, arrays = args.num_tokens, self.work, args.arrays
        q = self._normed(work.q.tensor[:n], self.q_norm, self.heads)  # (tokens, heads, head_dim)
        k = self._normed(work.k.tensor[:n], self.k_norm, self.kv_heads)
        v = work.v.tensor[:n].view(n, self.kv_heads, -1)
        q, k = self._rotate(q), self._rotate(k)
        if self.temperature is not None:
            turns = arrays["positions"].tensor[:n] // self.temperature.period
            q = q * (1 + self.temperature.beta * torch.log(1 + turns.float()))[:, None, None]
        slots = arrays["slot_mapping"].tensor[self.group, :n].long()
        block_size = self.k.shape[1]
        largest = torch.finfo(self.k.dtype).max
        self.k[slots // block_size, slots % block_size] = k.clamp(-largest, largest).to(self.k.dtype)
        self.v[slots // block_size, slots % block_size] = v.clamp(-largest, largest).to(self.v.dtype)
        starts = arrays["query_start_loc"].tensor[: args.num_seqs + 1].tolist()
        for s, (start, end) in enumerate(itertools.pairwise(starts)):
            positions = arrays["positions"].tensor[start:end, None]
            length = int(arrays["seq_lens"].tensor[s])
            # blocks before the first that is seen may be gone
            first = first_block(int(positions[0]), window=self.window, block_size=block_size)
            blocks = arrays["block_tables"].tensor[self.group, s, first : -(-length // block_size)].long()
            begin = first * block_size
            keys = self.k[blocks].flatten(0, 1)[: length - begin].float()  # (seen, kv_heads, head_dim)
            values = self.v[blocks].flatten(0, 1)[: length - begin].float()
            rows = q[start:end].reshape(
                end - start, self.kv_heads, -1, q.shape[-1]
            )  # (tokens, kv_heads, group, head_dim)
            scores = soft_cap(torch.einsum("tkgd,skd->kgts", rows * self.scale, keys), self.softcap)
            back = positions - torch.arange(begin, length)  # (tokens, seen)
            seen = back >= 0 if self.window == 0 else (back >= 0) & (back < self.window)
            weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
            # a key that nobody sees may hold anything: not even zero times it
            unseen = ~seen.any(0)
            out = torch.einsum("kgts,skd->tkgd", weights, values.masked_fill(unseen[:, None, None], 0.0))
            work.attended.tensor[start:end] = out.flatten(1)


@dataclass(frozen=True, slots=True)
class _AddNorm:
    y: Buffer
    x: Buffer
    norm: Norm

    def __call__(self, args: StepArgs) -> None:
        self.x.tensor[: args.num_tokens] += normalize(self.y.tensor[: args.num_tokens], self.norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moe:
    work: Workspace
    norm: Norm
    router: Linear
    experts: Sequence[tuple[Linear, Linear, Linear]]
    used: int
    activation: Activation
    outlier_threshold: float
    normalize_weights: bool
    scale: float

    def __call__(self, args: StepArgs) -> None:
        x = self.work.x.tensor[: args.num_tokens]
        normed = normalize(x, self.norm)
        [logits] = products([self.router], normed, self.outlier_threshold, args, tokens=torch.arange(len(x)))
        shares = torch.softmax(logits, dim=-1)
        best, chosen = torch.topk(shares, self.used)  # (tokens, used)
        if self.normalize_weights:
            best = best / best.sum(-1, keepdim=True)
        total = torch.zeros_like(x)
        for index, (gate, up, down) in enumerate(self.experts):  # ascending: the order in which a token adds them
            tokens, ranks = torch.nonzero(chosen == index, as_tuple=True)
            if len(tokens):
                first, second = products([gate, up], normed[tokens], self.outlier_threshold, args, tokens=tokens)
                inner = ACTIVATIONS[self.activation](first) * second
                [out] = products([down], inner, self.outlier_threshold, args, tokens=tokens)
                total[tokens] += best[tokens, ranks, None] * out
        x += self.scale * total


class ReferenceBackend(HostMemory):
    """Everything in torch. Weights stay decoded when they are small beside the memory that is free."""

    def __init__(self, *, threads: int | None = None, isa: str | None = None) -> None:
        super().__init__()
        self.name = "cpu torch"
        self.batch_invariant = False
        self.threads = self.torch_threads = threads or torch.get_num_threads()
        self._keep_dense = False

    @property
    def results(self) -> str:
        return f"{self.name} {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"

    def placed_bytes(self, matrix: Matrix) -> int:
        return matrix.rows * matrix.columns * 4

    def reserve(self, nbytes: int) -> None:
        self._keep_dense = nbytes < available_bytes() // 2

    def place(self, matrix: Matrix) -> ReferenceWeight:
        return ReferenceWeight(matrix, keep_dense=self._keep_dense)

    def quantize(self, name: str, target: QuantType, values: torch.Tensor) -> memoryview:
        try:
            blocks = scale_search.quantize_blocks(target, values)
        except ValueError as error:
            raise LoadError(f"{name} cannot be quantized to {target.name}: {error}") from error
        return blocks.contiguous().numpy().data.cast("B")

    def kv_cache(self, shape: KvShape) -> ReferenceKv:
        return ReferenceKv(shape)

    def delta_table(self, slots: int, shape: DeltaShape) -> ReferenceDeltaTable:
        return ReferenceDeltaTable(slots, shape)

    def embed(self, linear: Linear, work: Workspace, *, rotaries: Sequence[Rotary], scale: float = 1.0) -> Op:
        return _Embed(linear, work, tuple(rotaries), scale)

    def project(
        self,
        linears: Sequence[Linear],
        x: Buffer,
        outs: Sequence[Buffer],
        *,
        norm: Norm | None = None,
        epilogue: Epilogue = "store",
        activation: Activation = "silu",
        outlier_threshold: float = math.inf,
        logits_only: bool = False,
        softcap: float = 0.0,
        scale: float = 1.0,
    ) -> Op:
        return _Project(
            tuple(linears), x, tuple(outs), norm, epilogue, activation, outlier_threshold, logits_only, softcap, scale
        )

    def attend(
        self,
        work: Workspace,
        kv: object,
        *,
        layer: int,
        group: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        rotary: Rotary | None,
        q_norm: Norm | None = None,
        k_norm: Norm | None = None,
        full_norms: bool = False,
        window: int = 0,
        softcap: float = 0.0,
        temperature: Temperature | None = None,
    ) -> Op:
        assert isinstance(kv, ReferenceKv)
        return _Attend(
            work=work,
            k=kv.k[layer],
            v=kv.v[layer],
            group=group,
            heads=heads,
            kv_heads=kv_heads,
            scale=scale,
            rotary=rotary,
            q_norm=q_norm,
            k_norm=k_norm,
            full_norms=full_norms,
            window=window,
            softcap=softcap,
            temperature=temperature,
        )

    def add_norm(self, y: Buffer, x: Buffer, norm: Norm) -> Op:
        return _AddNorm(y, x, norm)

    def moe(
        self,
        work: Workspace,
        *,
        norm: Norm,
        router: Linear,
        gate: Sequence[Linear],
        up: Sequence[Linear],
        down: Sequence[Linear],
        used: int,
        activation: Activation,
        outlier_threshold: float,
        normalize_weights: bool = True,
        scale: float = 1.0,
    ) -> Op:
        experts = list(zip(gate, up, down, strict=True))
        return _Moe(
            work=work,
            norm=norm,
            router=router,
            experts=experts,
            used=used,
            activation=activation,
            outlier_threshold=outlier_threshold,
            normalize_weights=normalize_weights,
            scale=scale,
        )

    def program(self, ops: Sequence[Op], args: StepArgs) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            for op in ops:
                if args.cancel_flag.value:
                    return
                op(args)

        return run


def _plain(weight: Weight) -> ReferenceWeight:
    assert isinstance(weight, ReferenceWeight)
    return weight
