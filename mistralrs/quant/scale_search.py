"""Quantizes float32 rows in torch: the slow reference implementation of ``quantize_search.h``, with the same search.

The search minimizes the squared error of the decoded weights, all of which count alike. Codes q decode to
scale * q + offset, or to scale * q with q of both signs. The search first finds the best real scale (and offset) of
each run of weights that shares one, then the nearest halves and small integers that the format can store. Sums have
another order than in the kernels, so the bytes may differ where two choices are equally good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mistralrs.quant.types import QuantType

LARGEST_WEIGHT = 65504.0
"""Largest magnitude of a weight that can be quantized: the largest half."""

_SMALLEST_HALF = 2.0**-24
_ROUNDS = 3
_SLICE = 1 << 19
"""Weights that are quantized at once."""


class ScaleOffset(NamedTuple):
    """Scale and offset of each run, float32 (..., runs)."""

    scale: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True)
class ScaleOffsetSearch:
    """The search for codes from 0 to ``top``. It tries scales and offsets at which the ends of the range lie beyond the
    outer codes by multiples of ``step`` codes, from ``first`` to ``last``, and then improves the best one ``polish``
    times by least squares."""

    top: int
    first: int
    last: int
    step: float
    polish: int


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """The search for codes from ``bottom`` to ``top``. It tries the scales at which the weight of the largest magnitude
    has the code ``first``, ``first + step`` and so on up to ``last``."""

    bottom: int
    top: int
    first: float
    last: float
    step: float


@dataclass(frozen=True, slots=True)
class QuantizedBlocks:
    """Quantized blocks before packing: the codes ``q`` int32 (blocks, block_len) as stored; ``d`` and ``m`` float32
    (blocks,) with the values of halves; the K types' ``scales`` and ``minima`` int32 (blocks, runs)."""

    q: Tensor
    d: Tensor
    m: Tensor
    scales: Tensor
    minima: Tensor


def quantize_blocks(type_: QuantType, weights: Tensor) -> Tensor:
    """The weights quantized to blocks of the type.

    ``weights`` is float32 of shape (rows, columns). Returns uint8 of shape (rows, ``type_.row_bytes(columns)``).
    Raises ValueError for a type without a quantizer, for shapes that do not fit, and for weights that are not
    finite or beyond ``LARGEST_WEIGHT``.
    """
    if type_.name not in _QUANTIZERS:
        raise ValueError(f"nothing quantizes to {type_.name}")
    if weights.dtype != torch.float32 or weights.ndim != 2 or weights.shape[1] % type_.block_len:
        raise ValueError(
            f"expected float32 rows of a multiple of {type_.block_len} weights for {type_.name}, "
            f"got {weights.dtype} of shape {tuple(weights.shape)}"
        )
    if not bool((weights.abs() <= LARGEST_WEIGHT).all()):
        raise ValueError(f"weights are not finite or beyond {LARGEST_WEIGHT:.0f}")
    find, write = _QUANTIZERS[type_.name]
    blocks = weights.reshape(-1, type_.block_len)
    out = torch.empty(len(blocks), type_.block_bytes, dtype=torch.uint8)
    for start in range(0, len(blocks), _SLICE // type_.block_len):
        part = slice(start, start + _SLICE // type_.block_len)
        out[part] = write(find(blocks[part]))
    return out.reshape(len(weights), type_.row_bytes(weights.shape[1]))


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1e-25, 0.0, 1.0 / x)  # values far too small for a half count as zero


def _half(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT).half().float()


def _scale(x: Tensor) -> Tensor:
    """A scale rounded to half. Only zero becomes zero, so that integer factors can still reach small weights."""
    half = _half(x)
    smallest = torch.where(x < 0, -_SMALLEST_HALF, _SMALLEST_HALF)
    return torch.where((half == 0) & (x.abs() > 1e-25), smallest, half)


def _codes(x: Tensor, fitted: ScaleOffset, bottom: int, top: int) -> Tensor:
    """The nearest codes, float32, of weights (..., runs, n)."""
    return ((x - fitted.offset[..., None]) * _inverse(fitted.scale)[..., None]).clamp(bottom, top).round()


def _error(x: Tensor, fitted: ScaleOffset, bottom: int, top: int) -> Tensor:
    """The squared error of weights (..., runs, n) with these scales and offsets: (..., runs)."""
    shifted = x - fitted.offset[..., None]
    return (shifted - fitted.scale[..., None] * _codes(x, fitted, bottom, top)).square().sum(-1)


def _choose(better: Tensor, new: ScaleOffset, old: ScaleOffset) -> ScaleOffset:
    return ScaleOffset(torch.where(better, new.scale, old.scale), torch.where(better, new.offset, old.offset))


def _least_squares(y: Tensor, q: Tensor, ceiling: Tensor) -> ScaleOffset:
    """The scale and offset, at most ``ceiling``, of least error for weights (..., n) with these codes."""
    n, sum_q, sum_y, sum_qq, sum_qy = y.shape[-1], q.sum(-1), y.sum(-1), q.square().sum(-1), (q * y).sum(-1)
    scale = (n * sum_qy - sum_q * sum_y) * _inverse(n * sum_qq - sum_q.square())
    offset = (sum_y - scale * sum_q) / n
    bound = ((sum_qy - ceiling * sum_q) * _inverse(sum_qq)).clamp(min=0)
    return _choose(offset > ceiling, ScaleOffset(bound, ceiling), ScaleOffset(scale, offset))


def _fit_scale_offset(x: Tensor, search: ScaleOffsetSearch, *, below: bool) -> ScaleOffset:
    """The best scale and offset of each run (..., runs, n). ``below``: offsets must not be positive."""
    low = x.amin(-1).clamp(max=0) if below else x.amin(-1)
    y, span = x - low[..., None], (x.amax(-1) - low).clamp(min=0)
    ceiling = -low if below else torch.full_like(low, float("inf"))
    best, best_error = ScaleOffset(torch.zeros_like(low), torch.zeros_like(low)), torch.full_like(low, float("inf"))
    offsets = [step * search.step for step in range(search.first, search.last + 1)]
    candidates: list[tuple[float, float] | None] = [(under, over) for under in offsets for over in offsets]
    for candidate in candidates + [None] * search.polish:
        start = best
        if candidate is not None:
            scale = span / (search.top + sum(candidate))
            start = ScaleOffset(scale, scale * candidate[0])
        fitted = _least_squares(y, _codes(y, start, 0, search.top), ceiling)
        error = (
            (y - fitted.offset[..., None] - fitted.scale[..., None] * _codes(y, start, 0, search.top)).square().sum(-1)
        )
        best = _choose(error < best_error, fitted, best)
        best_error = torch.minimum(error, best_error)
    return ScaleOffset(best.scale, best.offset + low)


def _furthest(x: Tensor) -> Tensor:
    return x.gather(-1, x.abs().argmax(-1, keepdim=True)).squeeze(-1)


def _fit_scale(x: Tensor, search: ScaleSearch) -> Tensor:
    """The best scale of each run: (..., runs, n) -> (..., runs)."""
    signs = (-1.0, 1.0) if search.top < 31 else (-1.0,)  # with few codes, the extra one at the bottom matters
    count = int((search.last - search.first) / search.step) + 1
    candidates: list[float | None] = [sign * (search.first + search.step * i) for i in range(count) for sign in signs]
    far, zero = _furthest(x), torch.zeros(x.shape[:-1])
    best, best_gain = zero, torch.full_like(zero, -1.0)  # gain: sum of squared weights minus the error
    for candidate in [*candidates, None]:
        q = _codes(x, ScaleOffset(best if candidate is None else far / candidate, zero), search.bottom, search.top)
        product = (q * x).sum(-1)
        scale = product * _inverse(q.square().sum(-1))
        best = torch.where(scale * product > best_gain, scale, best)
        best_gain = torch.maximum(scale * product, best_gain)
    return best


def _search_scale_offset(x: Tensor, search: ScaleOffsetSearch) -> QuantizedBlocks:
    """Q4_1, Q5_1: d * q + m; (blocks, 32)."""
    top, low = search.top, x.amin(-1)
    best, best_error = ScaleOffset(low, low), torch.full_like(low, float("inf"))
    for start in (_fit_scale_offset(x, search, below=False), ScaleOffset((x.amax(-1) - low) / top, low)):
        scale = _scale(start.scale)
        centred = ScaleOffset(scale, start.offset + (start.scale - scale) * (0.5 * top))
        suited = (x.sum(-1) - scale * _codes(x, centred, 0, top).sum(-1)) / 32
        for offset in (start.offset, suited):
            fitted = ScaleOffset(scale, _half(offset))
            error = _error(x, fitted, 0, top)
            best = _choose(error < best_error, fitted, best)
            best_error = torch.minimum(error, best_error)
    none = torch.empty(len(x), 0, dtype=torch.int32)
    return QuantizedBlocks(_codes(x, best, 0, top).int(), best.scale, best.offset, none, none)


def _search_scale(x: Tensor, search: ScaleSearch) -> QuantizedBlocks:
    """Q4_0, Q5_0, Q8_0: d * q; (blocks, 32)."""
    zero = torch.zeros(len(x))
    best, best_error = zero, torch.full_like(zero, float("inf"))
    for start in (_fit_scale(x, search), _furthest(x) / search.bottom):
        scale = _scale(start)
        error = _error(x, ScaleOffset(scale, zero), search.bottom, search.top)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    none = torch.empty(len(x), 0, dtype=torch.int32)
    q = _codes(x, ScaleOffset(best, zero), search.bottom, search.top) - search.bottom
    return QuantizedBlocks(q.int(), best, zero, none, none)


def _choose_integers(
    x: Tensor, ideal: ScaleOffset, super_scales: ScaleOffset, top: int, limit: int
) -> tuple[ScaleOffset, Tensor]:
    """The integers near the ideal scales and offsets that decode best with these super-scales, and the errors: (blocks,
    runs)."""
    n, middle = x.shape[-1], (ideal.scale * _inverse(super_scales.scale)).round()
    best, best_error = ScaleOffset(middle, middle), torch.full_like(middle, float("inf"))
    for step in (-1, 0, 1):
        integer = (middle + step).clamp(0, limit)
        scale = super_scales.scale * integer
        centred = ScaleOffset(scale, ideal.offset + (ideal.scale - scale) * (0.5 * top))
        ideal_minimum = (scale * _codes(x, centred, 0, top).sum(-1) - x.sum(-1)) / n * _inverse(super_scales.offset)
        lower = (ideal_minimum - 0.5).clamp(0, limit).round()
        for minimum in (lower, (lower + 1).clamp(max=limit)):
            error = _error(x, ScaleOffset(scale, -(super_scales.offset * minimum)), 0, top)
            best = _choose(error < best_error, ScaleOffset(integer, minimum), best)
            best_error = torch.minimum(error, best_error)
    return best, best_error


def _refit_halves(x: Tensor, integers: ScaleOffset, q: Tensor, old: ScaleOffset) -> ScaleOffset:
    """The real d and m of least error for these integers and codes; the old ones where no solution is positive."""
    a = (integers.scale[..., None] * q).flatten(1)
    b = integers.offset[..., None].expand_as(q).flatten(1)
    w = x.flatten(1)
    aa, ab, bb, aw, bw = ((u * v).sum(-1, keepdim=True) for u, v in ((a, a), (a, b), (b, b), (a, w), (b, w)))
    det = aa * bb - ab.square()
    new = ScaleOffset((aw * bb - bw * ab) * _inverse(det), (aw * ab - bw * aa) * _inverse(det))
    return _choose((det > 1e-6 * aa * bb) & (new.scale > 0) & (new.offset > 0), new, old)


def _search_k_scale_offset(blocks: Tensor, search: ScaleOffsetSearch, *, run: int, limit: int) -> QuantizedBlocks:
    """Q2_K, Q4_K, Q5_K: d * scale * q - m * minimum with integers from 0 to ``limit``, one pair a run."""
    x = blocks.reshape(len(blocks), -1, run)
    ideal = _fit_scale_offset(x, search, below=True)
    widest, deepest = ideal.scale.amax(-1, keepdim=True), (-ideal.offset).amax(-1, keepdim=True)
    super_scales, best_super_scales = ScaleOffset(widest, deepest), ScaleOffset(widest, deepest)
    best, best_error = ideal, torch.full_like(widest, float("inf"))
    for i in range(2 * _ROUNDS):
        if i % _ROUNDS == 0:  # the largest ideal value gets the largest integer, or one beyond it
            reach = limit + i // _ROUNDS
            super_scales = ScaleOffset(widest / reach, deepest / reach)
        super_scales = ScaleOffset(_scale(super_scales.scale), _scale(super_scales.offset))
        integers, errors = _choose_integers(x, ideal, super_scales, search.top, limit)
        error = errors.sum(-1, keepdim=True)
        best = _choose(error < best_error, integers, best)
        best_super_scales = _choose(error < best_error, super_scales, best_super_scales)
        best_error = torch.minimum(error, best_error)
        fitted = ScaleOffset(super_scales.scale * integers.scale, -(super_scales.offset * integers.offset))
        super_scales = _refit_halves(x, integers, _codes(x, fitted, 0, search.top), super_scales)
    fitted = ScaleOffset(best_super_scales.scale * best.scale, -(best_super_scales.offset * best.offset))
    q = _codes(x, fitted, 0, search.top).flatten(1).int()
    d, m = best_super_scales.scale.squeeze(-1), best_super_scales.offset.squeeze(-1)
    return QuantizedBlocks(q, d, m, best.scale.int(), best.offset.int())


def _search_k_scale(blocks: Tensor, search: ScaleSearch, *, limit: int) -> QuantizedBlocks:
    """Q3_K, Q6_K: d * scale * q with integers from -limit - 1 to ``limit``, one for 16 weights."""
    x = blocks.reshape(len(blocks), -1, 16)
    ideal = _fit_scale(x, search)
    widest, zero = _furthest(ideal)[:, None], torch.zeros_like(ideal)
    d, best_d, best, best_error = widest, widest, ideal, torch.full_like(widest, float("inf"))
    for i in range(2 * _ROUNDS):
        if i % _ROUNDS == 0:
            d = widest / (limit if i else -limit - 1)
        d = _scale(d)
        middle = (ideal * _inverse(d)).round()
        chosen, least = zero, torch.full_like(zero, float("inf"))
        for step in (-1, 0, 1):
            integer = (middle + step).clamp(-limit - 1, limit)
            error = _error(x, ScaleOffset(d * integer, zero), search.bottom, search.top)
            chosen = torch.where(error < least, integer, chosen)
            least = torch.minimum(error, least)
        total = least.sum(-1, keepdim=True)
        best, best_d = torch.where(total < best_error, chosen, best), torch.where(total < best_error, d, best_d)
        best_error = torch.minimum(total, best_error)
        a = (chosen[..., None] * _codes(x, ScaleOffset(d * chosen, zero), search.bottom, search.top)).flatten(1)
        aa = a.square().sum(-1, keepdim=True)
        d = torch.where(aa > 0, (a * x.flatten(1)).sum(-1, keepdim=True) * _inverse(aa), d)
    q = _codes(x, ScaleOffset(best_d * best, zero), search.bottom, search.top) - search.bottom
    return QuantizedBlocks(q.flatten(1).int(), best_d.squeeze(-1), torch.zeros(len(x)), best.int(), zero.int())


def _halves(x: Tensor) -> Tensor:
    return x.half()[:, None].view(torch.uint8)


def _fields(q: Tensor, *, width: int, span: int, shift: int = 0) -> Tensor:
    """Packs bits ``shift`` to ``shift + width - 1`` of codes: a run of ``span`` codes goes to the lowest bits of as
    many bytes, the next run above them, and so on. (blocks, n) -> (blocks, n * width / 8) uint8."""
    runs = (q >> shift & ((1 << width) - 1)).reshape(len(q), -1, 8 // width, span)
    return (runs << torch.arange(0, 8, width)[:, None]).sum(2).flatten(1).to(torch.uint8)


def _write_nibbles(blocks: QuantizedBlocks) -> Tensor:
    return torch.cat((_halves(blocks.d), _fields(blocks.q, width=4, span=16)), dim=1)


def _write_nibbles_and_offset(blocks: QuantizedBlocks) -> Tensor:
    return torch.cat((_halves(blocks.d), _halves(blocks.m), _fields(blocks.q, width=4, span=16)), dim=1)


def _write_q5_0(blocks: QuantizedBlocks) -> Tensor:
    fifth = _fields(blocks.q, width=1, span=1, shift=4)
    return torch.cat((_halves(blocks.d), fifth, _fields(blocks.q, width=4, span=16)), dim=1)


def _write_q5_1(blocks: QuantizedBlocks) -> Tensor:
    fifth = _fields(blocks.q, width=1, span=1, shift=4)
    return torch.cat((_halves(blocks.d), _halves(blocks.m), fifth, _fields(blocks.q, width=4, span=16)), dim=1)


def _write_q8_0(blocks: QuantizedBlocks) -> Tensor:
    return torch.cat((_halves(blocks.d), (blocks.q - 127).to(torch.int8).view(torch.uint8)), dim=1)


def _write_q2_k(blocks: QuantizedBlocks) -> Tensor:
    integers = (blocks.scales | blocks.minima << 4).to(torch.uint8)
    return torch.cat((integers, _fields(blocks.q, width=2, span=32), _halves(blocks.d), _halves(blocks.m)), dim=1)


def _write_q3_k(blocks: QuantizedBlocks) -> Tensor:
    integers = blocks.scales + 32
    scales = (_fields(integers, width=4, span=8), _fields(integers, width=2, span=4, shift=4))
    q = (_fields(blocks.q, width=1, span=32, shift=2), _fields(blocks.q, width=2, span=32))
    return torch.cat((*q, *scales, _halves(blocks.d)), dim=1)


def _scales_and_minima(blocks: QuantizedBlocks) -> Tensor:
    """d, m and the twelve bytes of six-bit integers of Q4_K and Q5_K."""
    s, s_late, m, m_late = blocks.scales[:, :4], blocks.scales[:, 4:], blocks.minima[:, :4], blocks.minima[:, 4:]
    integers = torch.cat((s | s_late >> 4 << 6, m | m_late >> 4 << 6, (s_late & 15) | (m_late & 15) << 4), dim=1)
    return torch.cat((_halves(blocks.d), _halves(blocks.m), integers.to(torch.uint8)), dim=1)


def _write_q4_k(blocks: QuantizedBlocks) -> Tensor:
    return torch.cat((_scales_and_minima(blocks), _fields(blocks.q, width=4, span=32)), dim=1)


def _write_q5_k(blocks: QuantizedBlocks) -> Tensor:
    fifth = _fields(blocks.q, width=1, span=32, shift=4)
    return torch.cat((_scales_and_minima(blocks), fifth, _fields(blocks.q, width=4, span=32)), dim=1)


def _write_q6_k(blocks: QuantizedBlocks) -> Tensor:
    q = (_fields(blocks.q, width=4, span=64), _fields(blocks.q, width=2, span=32, shift=4))
    return torch.cat((*q, blocks.scales.to(torch.int8).view(torch.uint8), _halves(blocks.d)), dim=1)


_Quantizer = tuple[Callable[[Tensor], QuantizedBlocks], Callable[[QuantizedBlocks], Tensor]]

_QUANTIZERS: dict[str, _Quantizer] = {
    "Q4_0": (lambda x: _search_scale(x, ScaleSearch(-8, 7, 6.5, 9.0, 0.25)), _write_nibbles),
    "Q5_0": (lambda x: _search_scale(x, ScaleSearch(-16, 15, 14.0, 17.0, 0.25)), _write_q5_0),
    "Q8_0": (lambda x: _search_scale(x, ScaleSearch(-127, 127, 124.0, 130.0, 0.5)), _write_q8_0),
    "Q4_1": (lambda x: _search_scale_offset(x, ScaleOffsetSearch(15, -3, 3, 0.4, 1)), _write_nibbles_and_offset),
    "Q5_1": (lambda x: _search_scale_offset(x, ScaleOffsetSearch(31, -3, 3, 0.6, 2)), _write_q5_1),
    "Q2_K": (lambda x: _search_k_scale_offset(x, ScaleOffsetSearch(3, -1, 2, 0.25, 1), run=16, limit=15), _write_q2_k),
    "Q4_K": (lambda x: _search_k_scale_offset(x, ScaleOffsetSearch(15, -3, 3, 0.4, 1), run=32, limit=63), _write_q4_k),
    "Q5_K": (lambda x: _search_k_scale_offset(x, ScaleOffsetSearch(31, -3, 3, 0.6, 2), run=32, limit=63), _write_q5_k),
    "Q3_K": (lambda x: _search_k_scale(x, ScaleSearch(-4, 3, 3.0, 5.0, 0.25), limit=31), _write_q3_k),
    "Q6_K": (lambda x: _search_k_scale(x, ScaleSearch(-32, 31, 27.0, 33.5, 0.25), limit=127), _write_q6_k),
}
"""By type name the search, which takes float32 (blocks, block_len), and the packing of its result."""
