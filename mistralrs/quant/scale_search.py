"""Quantization of float32 rows in torch: the reference implementation of the kernels' ``quantize_search.h``, slow and
with the same search.

Every weight counts alike: the squared error of the decoded weights is what is made small. A line decodes to
scale * q + offset, a ray to scale * q with q of both signs. First the best line or ray in real numbers is sought for
each run of weights that shares one, then the halves and small integers that the format can hold. Sums run in another
order than the kernels', so where two choices are as good, the bytes may differ. Knows no file and no device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mistralrs.quant.types import QuantType

LARGEST_WEIGHT = 65504.0
"""Weights beyond the largest half cannot be quantized."""

_SMALLEST_HALF = 2.0**-24
_ROUNDS = 3
_SLICE = 1 << 19
"""Weights that are worked on at once."""


class Line(NamedTuple):
    """Of each run, float32 (..., runs)."""

    scale: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True)
class ScaleOffsetSearch:
    """Codes run from 0 to ``top``. The search starts from the lines where the ends of the range stand beyond the outer
    codes by multiples of ``step`` codes from ``first`` to ``last``; ``polish`` times codes and line then follow from
    one another."""

    top: int
    first: int
    last: int
    step: float
    polish: int


@dataclass(frozen=True, slots=True)
class ScaleSearch:
    """Codes run from ``bottom`` to ``top``. The search starts from the scales where the furthest weight stands at
    ``first``, then every ``step`` codes, up to ``last``."""

    bottom: int
    top: int
    first: float
    last: float
    step: float


@dataclass(frozen=True, slots=True)
class QuantizedBlocks:
    """Blocks as numbers: ``q`` int32 (blocks, block_len) as stored; ``d`` and ``m`` float32 (blocks,) that are halves;
    the K types' integers int32 (blocks, runs)."""

    q: Tensor
    d: Tensor
    m: Tensor
    scales: Tensor
    minima: Tensor


def quantize_blocks(type_: QuantType, weights: Tensor) -> Tensor:
    """Blocks of the type.

    ``weights`` is float32 of shape (rows, columns). Returns uint8 of shape (rows, ``type_.row_bytes(columns)``).
    Raises ValueError for a type that is not quantized to, for shapes that do not fit, and for weights that are not
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
    return torch.where(x.abs() < 1e-25, 0.0, 1.0 / x)  # what is far too small for a half has none


def _half(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT).half().float()


def _scale(x: Tensor) -> Tensor:
    """A scale as a half: only zero becomes zero, so that integers beside it can still reach small weights."""
    half = _half(x)
    smallest = torch.where(x < 0, -_SMALLEST_HALF, _SMALLEST_HALF)
    return torch.where((half == 0) & (x.abs() > 1e-25), smallest, half)


def _codes(x: Tensor, line: Line, bottom: int, top: int) -> Tensor:
    """(..., runs, n) weights -> the nearest codes on their line, float32."""
    return ((x - line.offset[..., None]) * _inverse(line.scale)[..., None]).clamp(bottom, top).round()


def _error(x: Tensor, line: Line, bottom: int, top: int) -> Tensor:
    """Squares of what the line leaves over: (..., runs, n) -> (..., runs)."""
    shifted = x - line.offset[..., None]
    return (shifted - line.scale[..., None] * _codes(x, line, bottom, top)).square().sum(-1)


def _choose(better: Tensor, new: Line, old: Line) -> Line:
    return Line(torch.where(better, new.scale, old.scale), torch.where(better, new.offset, old.offset))


def _least_squares(y: Tensor, q: Tensor, ceiling: Tensor) -> Line:
    """The line of least error through (..., n) weights with these codes whose offset is at most ``ceiling``."""
    n, sum_q, sum_y, sum_qq, sum_qy = y.shape[-1], q.sum(-1), y.sum(-1), q.square().sum(-1), (q * y).sum(-1)
    scale = (n * sum_qy - sum_q * sum_y) * _inverse(n * sum_qq - sum_q.square())
    offset = (sum_y - scale * sum_q) / n
    bound = ((sum_qy - ceiling * sum_q) * _inverse(sum_qq)).clamp(min=0)
    return _choose(offset > ceiling, Line(bound, ceiling), Line(scale, offset))


def _fit_line(x: Tensor, search: ScaleOffsetSearch, *, below: bool) -> Line:
    """The best line through each run: (..., runs, n). ``below``: offsets must not be positive."""
    low = x.amin(-1).clamp(max=0) if below else x.amin(-1)
    y, span = x - low[..., None], (x.amax(-1) - low).clamp(min=0)
    ceiling = -low if below else torch.full_like(low, float("inf"))
    best, best_error = Line(torch.zeros_like(low), torch.zeros_like(low)), torch.full_like(low, float("inf"))
    offsets = [step * search.step for step in range(search.first, search.last + 1)]
    guesses: list[tuple[float, float] | None] = [(under, over) for under in offsets for over in offsets]
    for guess in guesses + [None] * search.polish:
        start = best
        if guess is not None:
            scale = span / (search.top + sum(guess))
            start = Line(scale, scale * guess[0])
        line = _least_squares(y, _codes(y, start, 0, search.top), ceiling)
        error = (y - line.offset[..., None] - line.scale[..., None] * _codes(y, start, 0, search.top)).square().sum(-1)
        best = _choose(error < best_error, line, best)
        best_error = torch.minimum(error, best_error)
    return Line(best.scale, best.offset + low)


def _furthest(x: Tensor) -> Tensor:
    return x.gather(-1, x.abs().argmax(-1, keepdim=True)).squeeze(-1)


def _fit_ray(x: Tensor, search: ScaleSearch) -> Tensor:
    """The best scale of each run: (..., runs, n) -> (..., runs)."""
    signs = (-1.0, 1.0) if search.top < 31 else (-1.0,)  # few codes: the odd one at the bottom counts
    count = int((search.last - search.first) / search.step) + 1
    guesses: list[float | None] = [sign * (search.first + search.step * i) for i in range(count) for sign in signs]
    far, zero = _furthest(x), torch.zeros(x.shape[:-1])
    best, best_gain = zero, torch.full_like(zero, -1.0)  # gain: squares of the weights less the error
    for guess in [*guesses, None]:
        q = _codes(x, Line(best if guess is None else far / guess, zero), search.bottom, search.top)
        product = (q * x).sum(-1)
        scale = product * _inverse(q.square().sum(-1))
        best = torch.where(scale * product > best_gain, scale, best)
        best_gain = torch.maximum(scale * product, best_gain)
    return best


def _find_line(x: Tensor, search: ScaleOffsetSearch) -> QuantizedBlocks:
    """Q4_1, Q5_1: d * q + m; (blocks, 32)."""
    top, low = search.top, x.amin(-1)
    best, best_error = Line(low, low), torch.full_like(low, float("inf"))
    for start in (_fit_line(x, search, below=False), Line((x.amax(-1) - low) / top, low)):
        scale = _scale(start.scale)
        centred = Line(scale, start.offset + (start.scale - scale) * (0.5 * top))
        suited = (x.sum(-1) - scale * _codes(x, centred, 0, top).sum(-1)) / 32
        for offset in (start.offset, suited):
            line = Line(scale, _half(offset))
            error = _error(x, line, 0, top)
            best = _choose(error < best_error, line, best)
            best_error = torch.minimum(error, best_error)
    none = torch.empty(len(x), 0, dtype=torch.int32)
    return QuantizedBlocks(_codes(x, best, 0, top).int(), best.scale, best.offset, none, none)


def _find_ray(x: Tensor, search: ScaleSearch) -> QuantizedBlocks:
    """Q4_0, Q5_0, Q8_0: d * q; (blocks, 32)."""
    zero = torch.zeros(len(x))
    best, best_error = zero, torch.full_like(zero, float("inf"))
    for start in (_fit_ray(x, search), _furthest(x) / search.bottom):
        scale = _scale(start)
        error = _error(x, Line(scale, zero), search.bottom, search.top)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    none = torch.empty(len(x), 0, dtype=torch.int32)
    q = _codes(x, Line(best, zero), search.bottom, search.top) - search.bottom
    return QuantizedBlocks(q.int(), best, zero, none, none)


def _choose_line(x: Tensor, ideal: Line, halves: Line, top: int, limit: int) -> tuple[Line, Tensor]:
    """The integers near the ideal lines that decode best with these halves, and the errors: each (blocks, runs)."""
    n, middle = x.shape[-1], (ideal.scale * _inverse(halves.scale)).round()
    best, best_error = Line(middle, middle), torch.full_like(middle, float("inf"))
    for step in (-1, 0, 1):
        integer = (middle + step).clamp(0, limit)
        scale = halves.scale * integer
        centred = Line(scale, ideal.offset + (ideal.scale - scale) * (0.5 * top))
        wanted = (scale * _codes(x, centred, 0, top).sum(-1) - x.sum(-1)) / n * _inverse(halves.offset)
        lower = (wanted - 0.5).clamp(0, limit).round()
        for minimum in (lower, (lower + 1).clamp(max=limit)):
            error = _error(x, Line(scale, -(halves.offset * minimum)), 0, top)
            best = _choose(error < best_error, Line(integer, minimum), best)
            best_error = torch.minimum(error, best_error)
    return best, best_error


def _suit_lines(x: Tensor, integers: Line, q: Tensor, old: Line) -> Line:
    """The halves, still real, of least error for these integers and codes; the old ones where that has no answer."""
    a = (integers.scale[..., None] * q).flatten(1)
    b = integers.offset[..., None].expand_as(q).flatten(1)
    w = x.flatten(1)
    aa, ab, bb, aw, bw = ((u * v).sum(-1, keepdim=True) for u, v in ((a, a), (a, b), (b, b), (a, w), (b, w)))
    det = aa * bb - ab.square()
    new = Line((aw * bb - bw * ab) * _inverse(det), (aw * ab - bw * aa) * _inverse(det))
    return _choose((det > 1e-6 * aa * bb) & (new.scale > 0) & (new.offset > 0), new, old)


def _find_lines(blocks: Tensor, search: ScaleOffsetSearch, *, run: int, limit: int) -> QuantizedBlocks:
    """Q2_K, Q4_K, Q5_K: d * scale * q - m * minimum with integers from 0 to ``limit``, one pair a run."""
    x = blocks.reshape(len(blocks), -1, run)
    ideal = _fit_line(x, search, below=True)
    widest, deepest = ideal.scale.amax(-1, keepdim=True), (-ideal.offset).amax(-1, keepdim=True)
    halves, best_halves = Line(widest, deepest), Line(widest, deepest)
    best, best_error = ideal, torch.full_like(widest, float("inf"))
    for i in range(2 * _ROUNDS):
        if i % _ROUNDS == 0:  # the largest ideal number is held by the largest integer, or by one that is not there
            reach = limit + i // _ROUNDS
            halves = Line(widest / reach, deepest / reach)
        halves = Line(_scale(halves.scale), _scale(halves.offset))
        integers, errors = _choose_line(x, ideal, halves, search.top, limit)
        error = errors.sum(-1, keepdim=True)
        best = _choose(error < best_error, integers, best)
        best_halves = _choose(error < best_error, halves, best_halves)
        best_error = torch.minimum(error, best_error)
        line = Line(halves.scale * integers.scale, -(halves.offset * integers.offset))
        halves = _suit_lines(x, integers, _codes(x, line, 0, search.top), halves)
    line = Line(best_halves.scale * best.scale, -(best_halves.offset * best.offset))
    q = _codes(x, line, 0, search.top).flatten(1).int()
    d, m = best_halves.scale.squeeze(-1), best_halves.offset.squeeze(-1)
    return QuantizedBlocks(q, d, m, best.scale.int(), best.offset.int())


def _find_rays(blocks: Tensor, search: ScaleSearch, *, limit: int) -> QuantizedBlocks:
    """Q3_K, Q6_K: d * scale * q with integers from -limit - 1 to ``limit``, one for 16 weights."""
    x = blocks.reshape(len(blocks), -1, 16)
    ideal = _fit_ray(x, search)
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
            error = _error(x, Line(d * integer, zero), search.bottom, search.top)
            chosen = torch.where(error < least, integer, chosen)
            least = torch.minimum(error, least)
        total = least.sum(-1, keepdim=True)
        best, best_d = torch.where(total < best_error, chosen, best), torch.where(total < best_error, d, best_d)
        best_error = torch.minimum(total, best_error)
        a = (chosen[..., None] * _codes(x, Line(d * chosen, zero), search.bottom, search.top)).flatten(1)
        aa = a.square().sum(-1, keepdim=True)
        d = torch.where(aa > 0, (a * x.flatten(1)).sum(-1, keepdim=True) * _inverse(aa), d)
    q = _codes(x, Line(best_d * best, zero), search.bottom, search.top) - search.bottom
    return QuantizedBlocks(q.flatten(1).int(), best_d.squeeze(-1), torch.zeros(len(x)), best.int(), zero.int())


def _halves(x: Tensor) -> Tensor:
    return x.half()[:, None].view(torch.uint8)


def _fields(q: Tensor, *, width: int, span: int, shift: int = 0) -> Tensor:
    """Bits ``shift`` to ``shift + width - 1`` of codes: a run of ``span`` codes in the lowest bits of as many bytes,
    the next run above them, and so on. (blocks, n) -> (blocks, n * width / 8) uint8."""
    runs = (q >> shift & ((1 << width) - 1)).reshape(len(q), -1, 8 // width, span)
    return (runs << torch.arange(0, 8, width)[:, None]).sum(2).flatten(1).to(torch.uint8)


def _write_nibbles(found: QuantizedBlocks) -> Tensor:
    return torch.cat((_halves(found.d), _fields(found.q, width=4, span=16)), dim=1)


def _write_nibbles_and_offset(found: QuantizedBlocks) -> Tensor:
    return torch.cat((_halves(found.d), _halves(found.m), _fields(found.q, width=4, span=16)), dim=1)


def _write_q5_0(found: QuantizedBlocks) -> Tensor:
    fifth = _fields(found.q, width=1, span=1, shift=4)
    return torch.cat((_halves(found.d), fifth, _fields(found.q, width=4, span=16)), dim=1)


def _write_q5_1(found: QuantizedBlocks) -> Tensor:
    fifth = _fields(found.q, width=1, span=1, shift=4)
    return torch.cat((_halves(found.d), _halves(found.m), fifth, _fields(found.q, width=4, span=16)), dim=1)


def _write_q8_0(found: QuantizedBlocks) -> Tensor:
    return torch.cat((_halves(found.d), (found.q - 127).to(torch.int8).view(torch.uint8)), dim=1)


def _write_q2_k(found: QuantizedBlocks) -> Tensor:
    integers = (found.scales | found.minima << 4).to(torch.uint8)
    return torch.cat((integers, _fields(found.q, width=2, span=32), _halves(found.d), _halves(found.m)), dim=1)


def _write_q3_k(found: QuantizedBlocks) -> Tensor:
    integers = found.scales + 32
    scales = (_fields(integers, width=4, span=8), _fields(integers, width=2, span=4, shift=4))
    q = (_fields(found.q, width=1, span=32, shift=2), _fields(found.q, width=2, span=32))
    return torch.cat((*q, *scales, _halves(found.d)), dim=1)


def _scales_and_minima(found: QuantizedBlocks) -> Tensor:
    """d, m and the twelve bytes of six-bit integers of Q4_K and Q5_K."""
    s, s_late, m, m_late = found.scales[:, :4], found.scales[:, 4:], found.minima[:, :4], found.minima[:, 4:]
    integers = torch.cat((s | s_late >> 4 << 6, m | m_late >> 4 << 6, (s_late & 15) | (m_late & 15) << 4), dim=1)
    return torch.cat((_halves(found.d), _halves(found.m), integers.to(torch.uint8)), dim=1)


def _write_q4_k(found: QuantizedBlocks) -> Tensor:
    return torch.cat((_scales_and_minima(found), _fields(found.q, width=4, span=32)), dim=1)


def _write_q5_k(found: QuantizedBlocks) -> Tensor:
    fifth = _fields(found.q, width=1, span=32, shift=4)
    return torch.cat((_scales_and_minima(found), fifth, _fields(found.q, width=4, span=32)), dim=1)


def _write_q6_k(found: QuantizedBlocks) -> Tensor:
    q = (_fields(found.q, width=4, span=64), _fields(found.q, width=2, span=32, shift=4))
    return torch.cat((*q, found.scales.to(torch.int8).view(torch.uint8), _halves(found.d)), dim=1)


_Quantizer = tuple[Callable[[Tensor], QuantizedBlocks], Callable[[QuantizedBlocks], Tensor]]

_QUANTIZERS: dict[str, _Quantizer] = {
    "Q4_0": (lambda x: _find_ray(x, ScaleSearch(-8, 7, 6.5, 9.0, 0.25)), _write_nibbles),
    "Q5_0": (lambda x: _find_ray(x, ScaleSearch(-16, 15, 14.0, 17.0, 0.25)), _write_q5_0),
    "Q8_0": (lambda x: _find_ray(x, ScaleSearch(-127, 127, 124.0, 130.0, 0.5)), _write_q8_0),
    "Q4_1": (lambda x: _find_line(x, ScaleOffsetSearch(15, -3, 3, 0.4, 1)), _write_nibbles_and_offset),
    "Q5_1": (lambda x: _find_line(x, ScaleOffsetSearch(31, -3, 3, 0.6, 2)), _write_q5_1),
    "Q2_K": (lambda x: _find_lines(x, ScaleOffsetSearch(3, -1, 2, 0.25, 1), run=16, limit=15), _write_q2_k),
    "Q4_K": (lambda x: _find_lines(x, ScaleOffsetSearch(15, -3, 3, 0.4, 1), run=32, limit=63), _write_q4_k),
    "Q5_K": (lambda x: _find_lines(x, ScaleOffsetSearch(31, -3, 3, 0.6, 2), run=32, limit=63), _write_q5_k),
    "Q3_K": (lambda x: _find_rays(x, ScaleSearch(-4, 3, 3.0, 5.0, 0.25), limit=31), _write_q3_k),
    "Q6_K": (lambda x: _find_rays(x, ScaleSearch(-32, 31, 27.0, 33.5, 0.25), limit=127), _write_q6_k),
}
"""Type name -> how its blocks are found and how they are written; float32 (blocks, block_len) goes in."""
