"""From logits to tokens: penalties, DRY, bias, mask, temperature, top-k, top-p, min-p, draw, in this order.

A row's result depends on that row alone, bit for bit: what is done for all rows at once only copies or compares;
every sum and exponential is taken over one row of fixed shape. Other stages and orders are left to ``stages``, a row at
a time. Knows no sequence, no text and no grammar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.sampling.logits_processors import LOGITS_PROCESSORS, apply_mask, apply_penalties
from mistralrs.engine.sampling.sampler_stages import (
    BUCKET_SHIFT,
    GREEDY_BELOW,
    MAX_TEMPERATURE,
    SamplerPlan,
    exponentials,
    locate,
    sample_staged,
    sampler_plan,
)
from mistralrs.engine.sampling.sampling_input import (
    SampledToken,
    SamplingInput,
    uniform,
    unusable_logits,
    with_logprobs,
)
from mistralrs.errors import EngineError

TILE = 64
"""Rows are searched by the maxima of tiles of this many scores, and summed tile by tile."""
LOWEST = torch.finfo(torch.float32).min


class Sampler:
    """Draws a token for each row of a batch of logits. Owns its buffers; used by one thread."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._width = -(-vocab_size // TILE) * TILE
        self._scores = torch.empty(0, self._width)
        self._weights = torch.empty(0, self._width)

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingInput]) -> list[SampledToken | EngineError]:
        """Draws from float32 ``logits`` of shape (len(rows), at least vocab_size), which are left as they are.

        A row without a usable logit yields an error instead of a draw; the others do not notice.
        """
        if not rows:  # a step of prefill chunks that do not reach their ends
            return []
        plans = [sampler_plan(row.params) for row in rows]
        rows = [
            replace(row, params=plan.effective_params) if plan.effective_params else row
            for row, plan in zip(rows, plans, strict=True)
        ]
        scores = self._copy(logits)
        unmasked = self._process_logits(scores, rows, plans)
        maxima = scores.view(len(rows), -1, TILE).amax(2)  # (rows, tiles)
        tops = maxima.amax(1).tolist()
        tokens = self._pick_tokens(rows, plans, (scores, maxima), tops)
        return [
            _result(tokens[index], unmasked[index], row.params.logprobs)
            if index in tokens
            else unusable_logits(tops[index])
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

    def _process_logits(
        self, scores: torch.Tensor, rows: Sequence[SamplingInput], plans: Sequence[SamplerPlan]
    ) -> list[torch.Tensor]:
        """Changes ``scores`` (rows, width) by all that comes before the first choice.

        Returns each row (vocab_size,) as it was before its mask.
        """
        apply_penalties(scores, ((index, row) for index, row in enumerate(rows) if plans[index].has_penalties))
        unmasked = []
        for index, row in enumerate(rows):
            known = scores[index, : self._vocab_size]
            for stage in plans[index].logits_processors:
                LOGITS_PROCESSORS[stage](known, row)
            unmasked.append(apply_mask(known, row))
        return unmasked

    def _pick_tokens(
        self,
        rows: Sequence[SamplingInput],
        plans: Sequence[SamplerPlan],
        searched: tuple[torch.Tensor, torch.Tensor],
        tops: list[float],
    ) -> dict[int, int]:
        """Tokens by row; rows whose maximum in ``tops`` is not finite are left out."""
        scores, maxima = searched
        tokens: dict[int, int] = {}
        greedy, drawn, ranked = [], [], []
        for index, row in enumerate(rows):
            truncations = plans[index].truncations
            if not math.isfinite(tops[index]):
                continue
            if truncations is not None:
                tokens[index] = sample_staged(scores[index, : self._vocab_size], row, truncations)
            elif row.params.temperature < GREEDY_BELOW or row.params.top_p == 0:
                greedy.append(index)
            else:
                drawn.append(index)
                if 0 < row.params.top_k < self._vocab_size:
                    ranked.append(index)
        tokens.update(zip(greedy, _first_largest(scores, maxima, greedy), strict=True))
        masses = {index: self._weigh(index, scores[index], tops[index], rows[index].params) for index in drawn}
        tokens.update(zip(ranked, self._draw_ranked(ranked, rows, searched, masses), strict=True))
        for index in drawn:
            if index not in tokens:
                tokens[index] = _draw_dense(self._weights[index], masses[index], rows[index])
        return tokens

    def _weigh(self, index: int, scores: torch.Tensor, top: float, params: SamplingParams) -> torch.Tensor:
        """Fills a row of unnormalised probabilities (width,), 1 for the likeliest; returns the tiles' running sum."""
        weights = self._weights[index]
        torch.sub(scores, top, out=weights)
        if params.temperature != 1:
            weights.div_(min(params.temperature, MAX_TEMPERATURE))
        return _running_mass(exponentials(weights))

    def _draw_ranked(
        self,
        indices: list[int],
        rows: Sequence[SamplingInput],
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


def _pick(weights: list[float], row: SamplingInput, wanted: float) -> int:
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


def _running_mass(weights: torch.Tensor) -> torch.Tensor:
    """float64 running sum (tiles,) over the tiles of one row (width,)."""
    return weights.view(-1, TILE).sum(1).cumsum(0, dtype=torch.float64)


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


def _draw_dense(weights: torch.Tensor, mass: torch.Tensor, row: SamplingInput) -> int:
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
    tile = locate(mass, target)
    if tile > 0:
        target -= mass[tile - 1].item()
    inside = weights[tile * TILE : (tile + 1) * TILE].cumsum(0, dtype=torch.float64)
    return tile * TILE + locate(inside, target)


def _wanted(params: SamplingParams, mass: torch.Tensor) -> float:
    """The mass that top-p keeps of all that there is; infinite if it is off."""
    return params.top_p * mass[-1].item() if params.top_p < 1 else math.inf


def _nucleus(weights: torch.Tensor, wanted: float) -> torch.Tensor:
    """``weights`` in place, with all but the largest that together reach the mass ``wanted`` set to zero.

    Sorts only the weights near the border, which a histogram over the leading bits of the weights finds.
    """
    buckets = weights.view(torch.int32) >> BUCKET_SHIFT
    histogram = torch.bincount(buckets, weights=weights.double())
    from_top = histogram.flip(0).cumsum(0)
    place = locate(from_top, wanted, reach=True)
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


def _result(token: int, scores: torch.Tensor, count: int | None) -> SampledToken:
    """A draw with the log-probabilities of ``scores`` (vocab_size,) that were asked for."""
    return SampledToken(token) if count is None else with_logprobs(token, scores, count)
