"""The operations in plain torch, each a callable that reads and writes the buffers that it was bound to.

Products emulate the kernels' int8 activations. The results therefore differ from the kernels' by the rounding of
float32 sums alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mistralrs.ops.backend import Activation, Epilogue, Norm, Rotary, Temperature
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.kv_groups import first_block
from mistralrs.ops.linear import Linear
from mistralrs.ops.reference_deltas import adapted
from mistralrs.ops.reference_kv import StoredHeads, rotated
from mistralrs.ops.reference_memory import plain, tensor_of
from mistralrs.ops.workspace import StepArgs, Workspace
from mistralrs.quant.types import K_TYPES

_FLOATS = frozenset({"F32", "F16", "BF16"})


def round_to_int8(x: torch.Tensor, outlier_threshold: float, *, shared: int = 32) -> torch.Tensor:
    """Returns x (tokens, columns) after rounding to int8 with one scale for ``shared`` columns, 32 or 256.

    A quad, four neighbouring columns, whose largest value is above ``outlier_threshold`` times the average of the
    largest values of its row's groups of 32 is rounded to an int8 term of its own first, the coarse term, and the
    remainder takes its place. A threshold of 0 gives every group a second int8 term for its remainder instead, the
    residual term.
    """
    groups = x.view(x.shape[0], -1, 32)
    amax = groups.abs().amax(-1, keepdim=True)
    if outlier_threshold <= 0:
        step, inverse = _steps(_largest_of(groups, shared))
        first = torch.round(groups * inverse)
        second = torch.round(_remainder(groups, first, step) * (inverse * 254)) * (step / 254)
        return (first * step + second).view_as(x)
    # in float64, where no order of summation makes a difference that could be seen
    mean = torch.where(amax > _LEAST, amax, 0).double().mean(1, keepdim=True)
    limit = (outlier_threshold * mean).float().clamp(min=_LEAST)
    quads = groups.unflatten(-1, (-1, 4))  # (tokens, groups, quads, 4)
    largest = quads.abs().amax(-1, keepdim=True)
    step, inverse = _steps(largest)
    is_outlier = largest > limit[..., None]
    coarse = torch.where(is_outlier, torch.round(quads * inverse), 0)
    left = _remainder(quads, coarse, step).view_as(groups)
    step_left, inverse = _steps(_largest_of(left, shared))
    return (torch.round(left * inverse) * step_left + (coarse * step).view_as(groups)).view_as(x)


_LEAST = 1e-34
"""Smaller values count as zeros: the inverse of their step would be infinite."""


def _largest_of(groups: torch.Tensor, shared: int) -> torch.Tensor:
    """Returns (tokens, groups, 1): the largest absolute value of the ``shared`` columns that each group is part of."""
    largest = groups.abs().amax(-1, keepdim=True)
    many: torch.Tensor = largest.unflatten(1, (-1, shared // 32))
    return many.amax(2, keepdim=True).expand_as(many).reshape_as(largest)


def _steps(largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the scale of int8 values up to ``largest``, and its inverse."""
    # a true division, not 127 times the reciprocal as torch would make of 127 / largest
    inverse = torch.where(largest > _LEAST, torch.full_like(largest, 127) / largest, 0)
    return torch.where(largest > _LEAST, largest / 127, 0), inverse


def _remainder(x: torch.Tensor, rounded: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Returns x - rounded * step as one fused multiply-add."""
    # the product is exact in float64, and then so is the difference
    return (x.double() - rounded.double() * step.double()).float()


def normalize(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Returns ``norm`` of x over its last dimension."""
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * tensor_of(norm.weight)
    return y + tensor_of(norm.bias) if norm.bias else y


def normalize_rows(x: Buffer, out: Buffer, *, norm: Norm) -> None:
    """Writes ``norm`` of each row of ``x`` into ``out``, of the same shape."""
    tensor_of(out).copy_(normalize(tensor_of(x), norm))


def soft_cap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(x / cap) * cap if cap > 0 else x


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "gelu": torch.nn.functional.gelu,
}


def products(
    linears: Sequence[Linear],
    x: torch.Tensor,
    outlier_threshold: float,
    args: StepArgs,
    *,
    tokens: torch.Tensor,
    beside: Iterable[Linear] = (),
) -> list[torch.Tensor]:
    """Returns x (rows, columns) times each matrix, with what adapters add; int8 activations for the quantized ones.

    ``tokens`` (rows,): each row's token of the step. ``beside``: other matrices of the operation, whose types decide as
    well how many columns share a scale.
    """
    rounded = None
    shared = 256 if any(linear.weight.type.name in K_TYPES for linear in (*linears, *beside)) else 32
    values = []
    for linear in linears:
        weight = plain(linear.weight)
        if weight.type.name in _FLOATS:
            value = weight.product(x)
        else:
            if rounded is None:
                rounded = round_to_int8(x, outlier_threshold, shared=shared)
            value = weight.product(rounded)
        values.append(adapted(linear, value, x, args, tokens=tokens, bias=weight.bias))
    return values


@dataclass(frozen=True, slots=True)
class Project:
    """``Backend.project``, bound."""

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
            tokens = tensor_of(args.arrays["logits_indices"])[: args.num_logits]
        if not len(tokens):
            return
        x = tensor_of(self.x)[tokens]
        x = normalize(x, self.norm) if self.norm else x
        values = products(self.linears, x, self.outlier_threshold, args, tokens=tokens)
        activate = ACTIVATIONS[self.activation]
        if self.epilogue == "gated":
            values = [activate(values[0]) * values[1]]
        elif self.epilogue == "activate":
            values = [activate(value) for value in values]
        for value, out in zip(values, self.outs, strict=True):
            target = tensor_of(out)[: len(value)]
            capped = soft_cap(value * self.scale, self.softcap)
            target.copy_(target + capped if self.epilogue == "add" else capped)


@dataclass(frozen=True, slots=True)
class Embed:
    """``Backend.embed``, bound."""

    linear: Linear
    work: Workspace
    rotaries: Sequence[Rotary]
    scale: float

    def __call__(self, args: StepArgs) -> None:
        n = args.num_tokens
        ids = tensor_of(args.arrays["tokens"])[:n].long()
        rows = plain(self.linear.weight).rows_of(ids)
        tensor_of(self.work.x)[:n] = adapted(self.linear, rows, ids, args, tokens=torch.arange(n)) * self.scale
        positions = tensor_of(args.arrays["positions"])[:n].float()
        for rotary in self.rotaries:
            # the product in float32, as models were trained
            angles = (positions[:, None] * tensor_of(rotary.inv_freq)).double()
            tensor_of(rotary.table)[:n, 0] = torch.cos(angles).float() * rotary.scale
            tensor_of(rotary.table)[:n, 1] = torch.sin(angles).float() * rotary.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend:
    """``Backend.attend``, bound."""

    work: Workspace
    k: StoredHeads
    v: StoredHeads
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
        cosine, sine = tensor_of(self.rotary.table)[: len(x), :, None].unbind(1)  # (tokens, 1, half)
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine, rest], dim=-1)

    def __call__(self, args: StepArgs) -> None:
        n, work, arrays = args.num_tokens, self.work, args.arrays
        q = self._normed(tensor_of(work.q)[:n], self.q_norm, self.heads)  # (tokens, heads, head_dim)
        k = self._normed(tensor_of(work.k)[:n], self.k_norm, self.kv_heads)
        v = tensor_of(work.v)[:n].view(n, self.kv_heads, -1)
        q, k = self._rotate(q), self._rotate(k)
        if self.temperature is not None:
            turns = tensor_of(arrays["positions"])[:n] // self.temperature.period
            q = q * (1 + self.temperature.beta * torch.log(1 + turns.float()))[:, None, None]
        is_rotated = self.k.dtype == "q8_0"
        if is_rotated:
            q, k, v = rotated(q), rotated(k), rotated(v)
        slots = tensor_of(arrays["slot_mapping"])[self.group, :n].long()
        block_size = self.k.values.shape[1]
        self.k.put(slots, k)
        self.v.put(slots, v)
        starts = tensor_of(arrays["query_start_loc"])[: args.num_seqs + 1].tolist()
        for s, (start, end) in enumerate(itertools.pairwise(starts)):
            positions = tensor_of(arrays["positions"])[start:end, None]
            length = int(tensor_of(arrays["seq_lens"])[s])
            # blocks before the first that is seen may be gone
            first = first_block(int(positions[0]), window=self.window, block_size=block_size)
            blocks = tensor_of(arrays["block_tables"])[self.group, s, first : -(-length // block_size)].long()
            begin = first * block_size
            keys = self.k.of_blocks(blocks)[: length - begin]  # (seen, kv_heads, head_dim)
            values = self.v.of_blocks(blocks)[: length - begin]
            rows = q[start:end].reshape(
                end - start, self.kv_heads, -1, q.shape[-1]
            )  # (tokens, kv_heads, group, head_dim)
            asked = self.k.scored(rows, self.scale, softcap=self.softcap)
            scores = soft_cap(torch.einsum("tkgd,skd->kgts", asked, keys), self.softcap)
            back = positions - torch.arange(begin, length)  # (tokens, seen)
            seen = back >= 0 if self.window == 0 else (back >= 0) & (back < self.window)
            weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
            # a key that nobody sees may hold anything: not even zero times it
            unseen = ~seen.any(0)
            out = torch.einsum("kgts,skd->tkgd", weights, values.masked_fill(unseen[:, None, None], 0.0))
            tensor_of(work.attended)[start:end] = (rotated(out) if is_rotated else out).flatten(1)


@dataclass(frozen=True, slots=True)
class AddNorm:
    """``Backend.add_norm``, bound."""

    y: Buffer
    x: Buffer
    norm: Norm

    def __call__(self, args: StepArgs) -> None:
        tensor_of(self.x)[: args.num_tokens] += normalize(tensor_of(self.y)[: args.num_tokens], self.norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """``Backend.moe``, bound."""

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
        x = tensor_of(self.work.x)[: args.num_tokens]
        normed = normalize(x, self.norm)
        [logits] = products([self.router], normed, self.outlier_threshold, args, tokens=torch.arange(len(x)))
        shares = torch.softmax(logits, dim=-1)
        best, chosen = torch.topk(shares, self.used)  # (tokens, used)
        if self.normalize_weights:
            best = best / best.sum(-1, keepdim=True)
        total = torch.zeros_like(x)
        gates, ups, downs = zip(*self.experts, strict=True)
        # ascending, which is the order in which a token adds them
        for index, (gate, up, down) in enumerate(self.experts):
            tokens, ranks = torch.nonzero(chosen == index, as_tuple=True)
            if len(tokens):
                first, second = products(
                    [gate, up], normed[tokens], self.outlier_threshold, args, tokens=tokens, beside=(*gates, *ups)
                )
                inner = ACTIVATIONS[self.activation](first) * second
                [out] = products([down], inner, self.outlier_threshold, args, tokens=tokens, beside=downs)
                total[tokens] += best[tokens, ranks, None] * out
        x += self.scale * total
