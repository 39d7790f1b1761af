"""Sampling by any stages in any order, one row at a time.

The usual stages take the fast path of ``sampler``, with the same result. Each stage removes tokens by the probabilities
of those that remain, except for top-p, whose mass is a share of all tokens' mass by the current scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from mistralrs.engine.sampling.logits_processors import LOGITS_PROCESSORS
from mistralrs.engine.sampling.sampler_plan import GREEDY_BELOW
from mistralrs.engine.sampling.sampling_input import SamplingInput, uniform

MAX_TEMPERATURE = 1e30
"""Largest temperature: all weights are 1 there already, and beyond it float32 would overflow."""
BUCKET_SHIFT = 19
"""Low bits of a float32 that a histogram's buckets ignore: a bucket spans a factor of at most 1 + 1/16."""


def sample_staged(scores: torch.Tensor, sampling_input: SamplingInput, truncations: tuple[str, ...]) -> int:
    """A token sampled by float32 ``scores`` (vocab_size,), at least one of which is finite. They are not changed."""
    ids, weights = truncate(scores, sampling_input, truncations)
    cumulative = weights.cumsum(0)
    share = uniform(sampling_input.params.seed, len(sampling_input.tokens))
    return int(ids[locate(cumulative, share * cumulative[-1].item())])


def truncate(
    scores: torch.Tensor, sampling_input: SamplingInput, truncations: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids (n,) that remain after ``truncations``, ascending, and float64 weights (n,), the largest 1."""
    candidates = _Candidates(scores)
    for stage in truncations:
        _STAGES[stage](candidates, sampling_input)
    return candidates.ids, candidates.weights()


def exponentials(differences: torch.Tensor) -> torch.Tensor:
    """Weights exp(differences), computed in place, of scores less the largest score.

    Weights below e^-80 become 0: such a token would never be sampled, and sums of denormals take a hundred times as
    long.
    """
    return torch.threshold_(differences.clamp_(min=-80.0).exp_(), 2e-35, 0.0)


def locate(cumulative: torch.Tensor, target: float, *, reach: bool = False) -> int:
    """First index whose ``cumulative`` (float64) exceeds ``target`` or, with ``reach``, reaches it. Always valid."""
    total = cumulative[-1].item()
    target = min(target, total if reach else math.nextafter(total, 0.0))
    return int(torch.searchsorted(cumulative, target, right=not reach))


class _Candidates:
    """The tokens that remain after the stages so far."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores.double()
        """float64 (vocab_size,) scores of all tokens."""
        self.ids = (scores > -math.inf).nonzero().squeeze(1)
        """(n,) ids that remain, ascending."""
        self.values = self.scores[self.ids]
        """(n,) scores of ``ids``."""

    def keep(self, places: torch.Tensor) -> None:
        """Keeps the candidates at ``places``: indices, or bool (n,)."""
        self.ids, self.values = self.ids[places], self.values[places]

    def keep_likeliest(self) -> None:
        """Keeps the first of the candidates with the largest score."""
        self.keep(self.values.argmax().unsqueeze(0))

    def change(self, scores: torch.Tensor) -> None:
        """Replaces the scores (vocab_size,) of all tokens."""
        self.scores, self.values = scores, scores[self.ids]

    def weights(self) -> torch.Tensor:
        """(n,) unnormalized probabilities; the largest is 1."""
        return exponentials(self.values - self.values.amax())


def _temperature(candidates: _Candidates, sampling_input: SamplingInput) -> None:
    if sampling_input.params.temperature < GREEDY_BELOW:
        candidates.keep_likeliest()
    else:
        candidates.change(candidates.scores / min(sampling_input.params.temperature, MAX_TEMPERATURE))


def _top_k(candidates: _Candidates, sampling_input: SamplingInput) -> None:
    values = candidates.values
    if sampling_input.params.top_k >= len(values):
        return
    floor = values.topk(sampling_input.params.top_k).values[-1]
    above, equal = values > floor, values == floor
    candidates.keep(above | (equal & (equal.cumsum(0) <= sampling_input.params.top_k - above.sum())))


def _typical_p(candidates: _Candidates, sampling_input: SamplingInput) -> None:
    """Keeps the tokens whose surprise is nearest to the expected one; for a mass of 0 the most likely token, as top-p
    does, although its surprise may not be the nearest."""
    if sampling_input.params.typical_p == 0:
        candidates.keep_likeliest()
        return
    weights = candidates.weights()
    mass = weights.sum()
    surprise = candidates.values.amax() - candidates.values + mass.log()
    expected = (weights * surprise).sum() / mass
    candidates.keep(
        _first_to_reach((surprise - expected).abs(), weights, sampling_input.params.typical_p * mass.item())
    )


def _top_p(candidates: _Candidates, sampling_input: SamplingInput) -> None:
    if sampling_input.params.top_p == 0:
        candidates.keep_likeliest()
        return
    top = candidates.values.amax()
    mass = (candidates.scores - top).exp().sum().item()
    candidates.keep(_first_to_reach(top - candidates.values, candidates.weights(), sampling_input.params.top_p * mass))


def _min_p(candidates: _Candidates, sampling_input: SamplingInput) -> None:
    candidates.keep(candidates.weights() >= sampling_input.params.min_p)


def _xtc(candidates: _Candidates, sampling_input: SamplingInput) -> None:
    """Leaves out, with ``xtc_probability``, all likely tokens but the least likely of them."""
    if uniform(sampling_input.params.seed, len(sampling_input.tokens), "xtc") >= sampling_input.params.xtc_probability:
        return
    weights = candidates.weights()
    likely = (weights / weights.sum() >= sampling_input.params.xtc_threshold).nonzero().squeeze(1)
    if len(likely) > 1:
        least = likely[weights[likely].sort(descending=True, stable=True).indices[-1]]
        kept = torch.ones_like(weights, dtype=torch.bool)
        kept[likely] = False
        kept[least] = True
        candidates.keep(kept)


def _as_stage(stage: str) -> Callable[[_Candidates, SamplingInput], None]:
    def apply(candidates: _Candidates, sampling_input: SamplingInput) -> None:
        LOGITS_PROCESSORS[stage](candidates.scores, sampling_input)
        candidates.change(candidates.scores)

    return apply


_STAGES: Mapping[str, Callable[[_Candidates, SamplingInput], None]] = {
    **{stage: _as_stage(stage) for stage in LOGITS_PROCESSORS},
    "temperature": _temperature,
    "top_k": _top_k,
    "typical_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
}


def _first_to_reach(keys: torch.Tensor, weights: torch.Tensor, target_mass: float) -> torch.Tensor:
    """A bool mask (n,) of the fewest ``weights`` (n,), by ascending ``keys`` (n,), whose sum reaches ``target_mass``.

    Keys are at least 0; equal keys rank by index. At least one weight is taken, and all if their sum is too small. Only
    the weights near the border are sorted; a histogram over the leading bits of the keys finds them.
    """
    target_mass = max(target_mass, 5e-324)  # a mass of 0 would take no weight
    buckets = keys.float().abs().view(torch.int32) >> BUCKET_SHIFT  # abs: -0 has the sign bit
    mass = torch.bincount(buckets, weights=weights).cumsum(0)
    border = locate(mass, target_mass, reach=True)
    taken = buckets < border
    near = (buckets == border).nonzero().squeeze(1)
    near = near[keys[near].sort(stable=True).indices]
    inside = weights[near].cumsum(0) + (mass[border - 1] if border else 0.0)
    taken[near[: locate(inside, target_mass, reach=True) + 1]] = True
    return taken
