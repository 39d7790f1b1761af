"""From logits to tokens: penalties, bias, mask, temperature, top-k, top-p, min-p, draw, in this order.

A row's result depends on that row alone, bit for bit: what is done for all rows at once only copies or compares;
every sum and exponential is taken over one row of fixed shape. Knows no sequence, no text and no grammar.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack

import torch
import torch.nn.functional as F

from mistralrs.engine.config import SamplingParams
from mistralrs.errors import EngineError

GREEDY_BELOW = 1e-7
"""Temperatures under this take the most likely token."""
TILE = 64
"""Rows are searched by the maxima of tiles of this many scores, and summed tile by tile."""
LOWEST = torch.finfo(torch.float32).min
BUCKET_SHIFT = 19
"""Bits of a float32 that a bucket of weights ignores: a bucket spans a factor of at most 1 + 1/16."""


@dataclass(frozen=True, slots=True)
class Row:
    """One place where a token is wanted."""

    params: SamplingParams
    tokens: Sequence[int]
    """All known tokens of the sequence; their number is the position of the token to be drawn."""
    mask: torch.Tensor | None = None
    """Tokens that may come: bool (vocab_size,), or int32 words (ceil(vocab_size / 32),) with the lowest bit first."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A drawn token, with natural-log probabilities if they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token, log-probability), best first."""


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that draws the token at ``position``: 53 random bits, a function of its arguments alone.

    A counter-based generator, so that preemption and batching cannot shift a sequence of draws. Choices of one
    request have seeds of their own.
    """
    digest = hashlib.blake2b(pack("<Qq", seed % 2**64, position), digest_size=8, person=b"draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class Sampler:
    """Draws a token for each row of a batch of logits. Owns its buffers; used by one thread."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._width = -(-vocab_size // TILE) * TILE
        self._scores = torch.empty(0, self._width)
        self._weights = torch.empty(0, self._width)

    def sample(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Draw | EngineError]:
        """Draws from float32 ``logits`` of shape (len(rows), at least vocab_size), which are left as they are.

        A row without a usable logit yields an error instead of a draw; the others do not notice.
        """
        if not rows:  # a step of prefill chunks that do not reach their ends
            return []
        scores = self._copy(logits)
        _penalise(scores, rows)
        unmasked = [_edit(scores[index, : self._vocab_size], row) for index, row in enumerate(rows)]
        maxima = scores.view(len(rows), -1, TILE).amax(2)  # (rows, tiles)
        tops = maxima.amax(1).tolist()
        tokens = self._choose(rows, scores, maxima, tops)
        return [
            _with_logprobs(tokens[index], unmasked[index], row.params.logprobs)
            if index in tokens
            else _unusable(tops[index])
            for index, row in enumerate(rows)
        ]

    def _copy(self, logits: torch.Tensor) -> torch.Tensor:
        count = logits.shape[0]
        if self._scores.shape[0] < count:
            self._scores = torch.full((count, self._width), -math.inf)
            self._weights = torch.empty(count, self._width)
        scores = self._scores[:count]
        scores[:, : self._vocab_size].copy_(logits[:, : self._vocab_size])
        return scores

    def _choose(
        self, rows: Sequence[Row], scores: torch.Tensor, maxima: torch.Tensor, tops: list[float]
    ) -> dict[int, int]:
        """Tokens by row; rows whose maximum in ``tops`` is not finite are left out."""
        usable = [index for index in range(len(rows)) if math.isfinite(tops[index])]
        greedy = [index for index in usable if rows[index].params.temperature < GREEDY_BELOW]
        drawn = [index for index in usable if rows[index].params.temperature >= GREEDY_BELOW]
        ranked = [index for index in drawn if 0 < rows[index].params.top_k < self._vocab_size]
        tokens = dict(zip(greedy, _first_largest(scores, maxima, greedy), strict=True))
        masses = {index: self._weigh(index, scores[index], tops[index], rows[index].params) for index in drawn}
        chosen = self._draw_ranked(ranked, rows, (scores, maxima), masses)
        tokens.update(zip(ranked, chosen, strict=True))
        for index in drawn:
            if index not in tokens:
                tokens[index] = _draw_dense(self._weights[index], masses[index], rows[index])
        return tokens

    def _weigh(self, index: int, scores: torch.Tensor, top: float, params: SamplingParams) -> torch.Tensor:
        """Fills a row of unnormalised probabilities (width,), 1 for the likeliest; returns the tiles' running sum."""
        weights = self._weights[index]
        torch.sub(scores, top, out=weights)
        if params.temperature != 1:
            # Beyond 1e30 all weights are 1 anyway, and float32 would make it infinite.
            weights.div_(min(params.temperature, 1e30))
        # What is under e^-80 could not be drawn in the age of the universe, and denormal sums cost a hundredfold.
        torch.threshold_(weights.clamp_(min=-80.0).exp_(), 2e-35, 0.0)
        return _running_mass(weights)

    def _draw_ranked(
        self,
        indices: list[int],
        rows: Sequence[Row],
        searched: tuple[torch.Tensor, torch.Tensor],
        masses: dict[int, torch.Tensor],
    ) -> list[int]:
        """Tokens of the rows with top-k: the search is one for all rows, the few candidates are lists."""
        if not indices:
            return []
        scores, maxima = (tensor[indices] if len(indices) < len(rows) else tensor for tensor in searched)
        row, ids = _reaching(scores, maxima, [rows[index].params.top_k for index in indices])
        weights = self._weights[torch.tensor(indices)[row], ids].tolist()
        candidates, ends = ids.tolist(), row.bincount(minlength=len(indices)).cumsum(0).tolist()
        tokens, start = [], 0
        for index, end in zip(indices, ends, strict=True):
            wanted = _wanted(rows[index].params, masses[index])
            place = _pick(weights[start:end], rows[index], wanted)
            tokens.append(candidates[start + place])
            start = end
        return tokens


def _pick(weights: list[float], row: Row, wanted: float) -> int:
    """The place drawn from candidates, in order of ids, by top-k, top-p (up to the mass ``wanted``) and min-p."""
    params = row.params
    mass = 0.0
    kept: list[int] = []
    for place in sorted(range(len(weights)), key=weights.__getitem__, reverse=True)[: params.top_k]:
        weight = weights[place]
        if kept and (mass >= wanted or weight < params.min_p or weight == 0.0):
            break
        mass += weight
        kept.append(place)
    kept.sort()
    target = mass * uniform(params.seed, len(row.tokens))
    for place in kept:
        target -= weights[place]
        if target < 0:
            return place
    return kept[-1]


def _unusable(top: float) -> EngineError:
    if top == -math.inf:
        return EngineError("no token may follow: every logit is minus infinity", hint="check mask and logit_bias")
    return EngineError("the logits are not finite numbers", hint="is the model file damaged?")


def _running_mass(weights: torch.Tensor) -> torch.Tensor:
    """float64 running sum (tiles,) over the tiles of one row (width,)."""
    return weights.view(-1, TILE).sum(1).cumsum(0, dtype=torch.float64)


def _penalise(scores: torch.Tensor, rows: Sequence[Row]) -> None:
    """Repetition (positive scores divided, others multiplied), then frequency and presence, over the last tokens.

    ``scores`` (rows, width) change in place.
    """
    places: list[int] = []
    columns: list[tuple[float, float, float]] = []  # of each place: repetition, what a token costs, presence
    for index, row in enumerate(rows):
        p = row.params
        if p.repeat_last_n > 0 and (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) != (1, 0, 0):
            for token, count in Counter(row.tokens[-p.repeat_last_n :]).items():
                places.append(index * scores.shape[1] + token)
                columns.append((p.repetition_penalty, count * p.frequency_penalty, p.presence_penalty))
    if places:
        flat, where = scores.view(-1), torch.tensor(places)
        repetition, frequency, presence = torch.tensor(columns, dtype=torch.float32).unbind(1)
        values = flat[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        flat[where] = values - (frequency + presence)


def _edit(scores: torch.Tensor, row: Row) -> torch.Tensor:
    """Bias and mask on ``scores`` (vocab_size,) in place. Returns the scores from before the mask."""
    if row.params.logit_bias:
        ids, values = zip(*row.params.logit_bias, strict=True)
        scores.index_add_(0, torch.tensor(ids), torch.tensor(values, dtype=torch.float32))
    if row.mask is None:
        return scores
    before = scores.clone() if row.params.logprobs is not None else scores
    scores.masked_fill_(~_allowed(row.mask, scores.shape[0]), -math.inf)
    return before


def _allowed(mask: torch.Tensor, vocab_size: int) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return mask
    bits = mask.unsqueeze(1) >> torch.arange(32, dtype=torch.int32)  # (words, 32)
    return bits.bitwise_and_(1).flatten()[:vocab_size].bool()


def _first_largest(scores: torch.Tensor, maxima: torch.Tensor, indices: list[int]) -> list[int]:
    """The first of the largest scores of each of these rows."""
    if not indices:
        return []
    tiles = maxima[indices].argmax(1)
    inside = scores.view(*maxima.shape, TILE)[indices, tiles].argmax(1)
    tokens: list[int] = (tiles * TILE + inside).tolist()
    return tokens


def _reaching(scores: torch.Tensor, maxima: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and ids, ascending, of the ``scores`` (rows, width) that may be among the largest ``counts`` of their row.

    ``maxima`` (rows, tiles) are the tiles'. Scores of minus infinity are left out.
    """
    most = max(counts)
    # As many tiles reach the floor as scores are wanted, so the scores wanted reach it too.
    ranked = (maxima if most <= maxima.shape[1] else scores).topk(most, dim=1).values
    floors = ranked.gather(1, torch.tensor(counts).unsqueeze(1) - 1).clamp_(min=LOWEST)  # (rows, 1)
    row, tile = (maxima >= floors).nonzero(as_tuple=True)
    hit, offset = (scores.view(*maxima.shape, TILE)[row, tile] >= floors[row]).nonzero(as_tuple=True)
    return row[hit], tile[hit] * TILE + offset


def _draw_dense(weights: torch.Tensor, mass: torch.Tensor, row: Row) -> int:
    """A token by top-p, min-p and the row's number, from all ``weights`` (width,) with their running ``mass``."""
    params = row.params
    wanted = _wanted(params, mass)
    if wanted < math.inf:
        weights = _nucleus(weights, wanted)
    if params.min_p > 0:
        weights = F.hardshrink(weights, _below(params.min_p))
    if wanted < math.inf or params.min_p > 0:
        mass = _running_mass(weights)
    target = uniform(params.seed, len(row.tokens)) * mass[-1].item()
    tile = _locate(mass, target)
    if tile > 0:
        target -= mass[tile - 1].item()
    inside = weights[tile * TILE : (tile + 1) * TILE].cumsum(0, dtype=torch.float64)
    return tile * TILE + _locate(inside, target)


def _wanted(params: SamplingParams, mass: torch.Tensor) -> float:
    """The mass that top-p keeps of all that there is; infinite if it is off."""
    return params.top_p * mass[-1].item() if 0 < params.top_p < 1 else math.inf


def _nucleus(weights: torch.Tensor, wanted: float) -> torch.Tensor:
    """``weights`` in place, with all but the largest that together reach the mass ``wanted`` set to zero.

    Sorts only the weights near the border, which a histogram over the leading bits of the weights finds.
    """
    buckets = weights.view(torch.int32) >> BUCKET_SHIFT
    histogram = torch.bincount(buckets, weights=weights.double())
    from_top = histogram.flip(0).cumsum(0)
    place = _locate(from_top, wanted, reach=True)
    border = histogram.shape[0] - 1 - place
    mass_above = from_top[place - 1].item() if place else 0.0
    ids = (buckets == border).nonzero().squeeze(1)
    ranked, order = weights[ids].sort(descending=True, stable=True)
    mass_before = ranked.cumsum(0, dtype=torch.float64) - ranked + mass_above
    weights[ids[order[mass_before >= wanted]]] = 0.0
    if border > 0:
        largest_below = torch.tensor((border << BUCKET_SHIFT) - 1, dtype=torch.int32).view(torch.float32).item()
        weights = F.hardshrink(weights, largest_below)
    return weights


def _below(value: float) -> float:
    """The next float32 under ``value``."""
    number = torch.tensor(value, dtype=torch.float32)
    return float(torch.nextafter(number, torch.zeros(())))


def _locate(cumulative: torch.Tensor, target: float, *, reach: bool = False) -> int:
    """First index whose ``cumulative`` (float64) exceeds ``target`` or, with ``reach``, reaches it. Always valid."""
    total = cumulative[-1].item()
    target = min(target, total if reach else math.nextafter(total, 0.0))
    return int(torch.searchsorted(cumulative, target, right=not reach))


def _with_logprobs(token: int, scores: torch.Tensor, count: int | None) -> Draw:
    """A draw with the log-probabilities of ``scores`` (vocab_size,) that were asked for."""
    if count is None:
        return Draw(token)
    logprobs = scores.double().log_softmax(0)
    values, ids = logprobs.topk(count)
    return Draw(token, logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
