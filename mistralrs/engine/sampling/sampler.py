"""Samples tokens from logits with torch: penalties, DRY, bias, mask, temperature, top-k, top-p, min-p, choice, in this
order. It is the reference of ``native_sampler``, and samples where no backend does.

The result of a row depends on that row alone, bit for bit: operations over all rows only copy or compare, and every sum
and exponential is taken over one row of fixed shape. ``sampler_stages`` handles other stages and orders, one row at a
time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import c_int32
from dataclasses import replace

import torch
import torch.nn.functional as F

from mistralrs.engine.config import SamplingParams
from mistralrs.engine.sampling.buffer_tensor import float_rows
from mistralrs.engine.sampling.logits_processors import LOGITS_PROCESSORS, apply_mask, apply_penalties
from mistralrs.engine.sampling.sampler_plan import GREEDY_BELOW, SamplerPlan, sampler_plan
from mistralrs.engine.sampling.sampler_stages import (
    BUCKET_SHIFT,
    MAX_TEMPERATURE,
    exponentials,
    locate,
    sample_staged,
)
from mistralrs.engine.sampling.sampling_input import (
    SampledToken,
    SamplingInput,
    uniform,
    unusable_logits,
)
from mistralrs.errors import EngineError
from mistralrs.ops.buffer import Buffer

TILE = 64
"""Scores of a tile. Rows are searched by the maxima of their tiles, and summed tile by tile."""
LOWEST = torch.finfo(torch.float32).min


class Sampler:
    """Samples a token for each row of a batch of logits. Owns its buffers; used by one thread."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._width = -(-vocab_size // TILE) * TILE
        self._scores = torch.empty(0, self._width)
        self._weights = torch.empty(0, self._width)

    def sample(
        self, logits: Buffer, inputs: Sequence[SamplingInput], *, rows: Sequence[int] | None = None
    ) -> list[SampledToken | EngineError]:
        """One token for each input.

        ``logits``: float32 (count, vocab_size or more), which are not changed.
        ``rows``: the row of each input, ascending; None: all rows.
        A row without a usable logit, or with a hook that fails, yields an error instead of a token, and does not affect
        the others.
        """
        if not inputs:  # a step of prefill chunks that do not reach their ends
            return []
        plans = [sampler_plan(item.params) for item in inputs]
        inputs = [
            replace(item, params=plan.effective_params) if plan.effective_params else item
            for item, plan in zip(inputs, plans, strict=True)
        ]
        scores = self._copy(logits, rows)
        unmasked = self._process_logits(scores, inputs, plans)
        maxima = scores.view(len(inputs), -1, TILE).amax(2)  # (rows, tiles)
        tops = maxima.amax(1).tolist()
        tokens = self._pick_tokens(inputs, plans, (scores, maxima), tops)
        return [
            _result(tokens.get(index), row, item.params.logprobs, top)
            for index, (item, row, top) in enumerate(zip(inputs, unmasked, tops, strict=True))
        ]

    def prepare(
        self,
        logits: Buffer,
        inputs: Sequence[SamplingInput],
        *,
        num_steps: int = 1,
        num_parts: int = 1,
        wait_flag: c_int32 | None = None,
    ) -> None:
        """Returns None: torch samples after the pass."""

    def score(self, logits: Buffer, tokens: Sequence[int], count: int) -> list[SampledToken | EngineError]:
        """``tokens``, one for each row of ``logits``, with their own and the best ``count`` log-probabilities."""
        scored: list[SampledToken | EngineError] = []
        for token, row in zip(tokens, float_rows(logits)[:, : self._vocab_size], strict=True):
            sampled = _with_logprobs(token, row, count)
            assert sampled.logprob is not None
            scored.append(sampled if math.isfinite(sampled.logprob) else unusable_logits(row.amax().item()))
        return scored

    def _copy(self, logits: Buffer, rows: Sequence[int] | None) -> torch.Tensor:
        """The wanted rows of ``logits``, without columns of padding, in a tensor (rows, width) of the sampler's own."""
        values = float_rows(logits)[:, : self._vocab_size]
        if rows is not None and len(rows) < len(values):
            values = values[list(rows)]
        count = len(values)
        if self._scores.shape[0] < count:
            self._scores = torch.full((count, self._width), -math.inf)
            self._weights = torch.empty(count, self._width)
        scores = self._scores[:count]
        scores[:, : self._vocab_size].copy_(values)
        return scores

    def _process_logits(
        self, scores: torch.Tensor, inputs: Sequence[SamplingInput], plans: Sequence[SamplerPlan]
    ) -> list[torch.Tensor | EngineError]:
        """Applies logits processors, bias, hooks and masks to ``scores`` (rows, width), in place.

        Returns for each row its scores (vocab_size,) without hooks and mask, or the error of its hooks.
        """
        apply_penalties(scores, ((index, item) for index, item in enumerate(inputs) if plans[index].has_penalties))
        unmasked: list[torch.Tensor | EngineError] = []
        for index, item in enumerate(inputs):
            row = scores[index, : self._vocab_size]
            for stage in plans[index].logits_processors:
                LOGITS_PROCESSORS[stage](row, item)
            try:
                unmasked.append(apply_mask(row, item))
            except EngineError as error:
                unmasked.append(error)
        return unmasked

    def _pick_tokens(
        self,
        inputs: Sequence[SamplingInput],
        plans: Sequence[SamplerPlan],
        searched: tuple[torch.Tensor, torch.Tensor],
        tops: list[float],
    ) -> dict[int, int]:
        """Tokens by row index; rows whose maximum in ``tops`` is not finite are left out."""
        scores, maxima = searched
        tokens: dict[int, int] = {}
        greedy, random, ranked = [], [], []
        for index, item in enumerate(inputs):
            truncations = plans[index].truncations
            if not math.isfinite(tops[index]):
                continue
            if truncations is not None:
                tokens[index] = sample_staged(scores[index, : self._vocab_size], item, truncations)
            elif item.params.temperature < GREEDY_BELOW or item.params.top_p == 0:
                greedy.append(index)
            else:
                random.append(index)
                if 0 < item.params.top_k < self._vocab_size:
                    ranked.append(index)
        tokens.update(zip(greedy, _first_largest(scores, maxima, greedy), strict=True))
        masses = {index: self._weigh(index, scores[index], tops[index], inputs[index].params) for index in random}
        tokens.update(zip(ranked, self._sample_ranked(ranked, inputs, searched, masses), strict=True))
        for index in random:
            if index not in tokens:
                tokens[index] = _sample_dense(scores[index], self._weights[index], masses[index], inputs[index])
        return tokens

    def _weigh(self, index: int, scores: torch.Tensor, top: float, params: SamplingParams) -> torch.Tensor:
        """Fills a row of unnormalized probabilities (width,), the largest 1; returns the running sum over its tiles."""
        weights = self._weights[index]
        torch.sub(scores, top, out=weights)
        if params.temperature != 1:
            weights.div_(min(params.temperature, MAX_TEMPERATURE))
        return _running_mass(exponentials(weights))

    def _sample_ranked(
        self,
        indices: list[int],
        inputs: Sequence[SamplingInput],
        searched: tuple[torch.Tensor, torch.Tensor],
        masses: dict[int, torch.Tensor],
    ) -> list[int]:
        """Tokens of the rows with top-k. One search finds the candidates of all rows; these are few, hence lists."""
        if not indices:
            return []
        scores, maxima = (tensor[indices] if len(indices) < len(inputs) else tensor for tensor in searched)
        row, ids = _reaching(scores, maxima, [inputs[index].params.top_k for index in indices])
        weights = self._weights[torch.tensor(indices)[row], ids].tolist()
        ranks = scores[row, ids].tolist()
        candidates, ends = ids.tolist(), row.bincount(minlength=len(indices)).cumsum(0).tolist()
        tokens, start = [], 0
        for index, end in zip(indices, ends, strict=True):
            limit = _top_p_mass(inputs[index].params, masses[index])
            place = _pick(ranks[start:end], weights[start:end], inputs[index], top_p_mass=limit)
            tokens.append(candidates[start + place])
            start = end
        return tokens


def _pick(scores: list[float], weights: list[float], sampling_input: SamplingInput, *, top_p_mass: float) -> int:
    """The index sampled from candidates in order of ids, by top-k, top-p (up to ``top_p_mass``) and min-p.

    Candidates rank by their scores: weights of different scores may be equal.
    """
    params = sampling_input.params
    mass = 0.0
    kept: list[int] = []
    for place in sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: params.top_k]:
        weight = weights[place]
        if kept and (mass >= top_p_mass or weight < params.min_p or weight == 0.0):
            break
        mass += weight
        kept.append(place)
    kept.sort()
    target = mass * uniform(params.seed, len(sampling_input.tokens))
    for place in kept:
        target -= weights[place]
        if target < 0:
            return place
    return kept[-1]


def _running_mass(weights: torch.Tensor) -> torch.Tensor:
    """float64 running sum (tiles,) over the tiles of one row (width,)."""
    return weights.view(-1, TILE).sum(1).cumsum(0, dtype=torch.float64)


def _first_largest(scores: torch.Tensor, maxima: torch.Tensor, indices: list[int]) -> list[int]:
    """For each of these rows, the first index of its largest score."""
    if not indices:
        return []
    tiles = maxima[indices].argmax(1)
    inside = scores.view(*maxima.shape, TILE)[indices, tiles].argmax(1)
    tokens: list[int] = (tiles * TILE + inside).tolist()
    return tokens


def _reaching(scores: torch.Tensor, maxima: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row indices and ids, ascending, of ``scores`` (rows, width) that may be among the ``counts`` largest of a row.

    ``maxima`` (rows, tiles) are the maxima of the tiles. Scores of minus infinity are left out.
    """
    most = max(counts)
    # The floor is the k-th largest of the tiles' maxima, so at least k scores reach it.
    ranked = (maxima if most <= maxima.shape[1] else scores).topk(most, dim=1).values
    floors = ranked.gather(1, torch.tensor(counts).unsqueeze(1) - 1).clamp_(min=LOWEST)  # (rows, 1)
    row, tile = (maxima >= floors).nonzero(as_tuple=True)
    hit, offset = (scores.view(*maxima.shape, TILE)[row, tile] >= floors[row]).nonzero(as_tuple=True)
    return row[hit], tile[hit] * TILE + offset


def _sample_dense(
    scores: torch.Tensor, weights: torch.Tensor, mass: torch.Tensor, sampling_input: SamplingInput
) -> int:
    """A token sampled by top-p and min-p from all ``weights`` (width,) of ``scores``, whose running sum over tiles is
    ``mass``."""
    params = sampling_input.params
    top_p_mass = _top_p_mass(params, mass)
    if top_p_mass < math.inf:
        weights = _nucleus(scores, weights, top_p_mass)
    if params.min_p > 0:
        weights = F.hardshrink(weights, _below(params.min_p))
    if top_p_mass < math.inf or params.min_p > 0:
        mass = _running_mass(weights)
    target = uniform(params.seed, len(sampling_input.tokens)) * mass[-1].item()
    tile = locate(mass, target)
    if tile > 0:
        target -= mass[tile - 1].item()
    inside = weights[tile * TILE : (tile + 1) * TILE].cumsum(0, dtype=torch.float64)
    return tile * TILE + locate(inside, target)


def _top_p_mass(params: SamplingParams, mass: torch.Tensor) -> float:
    """The mass that top-p keeps; infinite if it is off."""
    return params.top_p * mass[-1].item() if params.top_p < 1 else math.inf


def _nucleus(scores: torch.Tensor, weights: torch.Tensor, top_p_mass: float) -> torch.Tensor:
    """``weights``, with all but those of the largest ``scores`` that together reach ``top_p_mass`` set to zero, partly
    in place.

    Only the weights near the border are sorted; a histogram over the leading bits of the weights finds them.
    """
    buckets = weights.view(torch.int32) >> BUCKET_SHIFT
    histogram = torch.bincount(buckets, weights=weights.double())
    from_top = histogram.flip(0).cumsum(0)
    place = locate(from_top, top_p_mass, reach=True)
    border = histogram.shape[0] - 1 - place
    mass_above = from_top[place - 1].item() if place else 0.0
    ids = (buckets == border).nonzero().squeeze(1)
    order = scores[ids].sort(descending=True, stable=True).indices
    ranked = weights[ids[order]]
    mass_before = ranked.cumsum(0, dtype=torch.float64) - ranked + mass_above
    weights[ids[order[mass_before >= top_p_mass]]] = 0.0
    if border > 0:
        largest_below = torch.tensor((border << BUCKET_SHIFT) - 1, dtype=torch.int32).view(torch.float32).item()
        weights = F.hardshrink(weights, largest_below)
    return weights


def _below(value: float) -> float:
    """The largest float32 below ``value``."""
    number = torch.tensor(value, dtype=torch.float32)
    return float(torch.nextafter(number, torch.zeros(())))


def _result(
    token: int | None, scores: torch.Tensor | EngineError, count: int | None, top: float
) -> SampledToken | EngineError:
    """``token`` with the log-probabilities by ``scores`` (vocab_size,) that the request asks for, or the row's error.

    ``top``: the largest score with which the row was sampled."""
    if isinstance(scores, EngineError):
        return scores
    if token is None:
        return unusable_logits(top)
    return SampledToken(token) if count is None else _with_logprobs(token, scores, count)


def _with_logprobs(token: int, scores: torch.Tensor, count: int) -> SampledToken:
    """``token`` with its own and the best ``count`` log-probabilities under ``scores`` (vocab_size,)."""
    logprobs = scores.double().log_softmax(0)
    values, ids = logprobs.topk(count)
    return SampledToken(token, logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
