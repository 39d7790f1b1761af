"""The stages of sampling: the plan of a request, and sampling by any stages in any order, one row at a time.

The usual stages take the fast path of ``sampler``, with the same result. Each stage removes tokens by the probabilities
of those that remain, except for top-p, whose mass is a share of all tokens' mass by the current scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from mistralrs.engine.config import SAMPLERS, SamplingParams
from mistralrs.engine.sampling.logits_processors import LOGITS_PROCESSORS
from mistralrs.engine.sampling.sampling_input import SamplingInput, uniform

GREEDY_BELOW = 1e-7
"""Temperatures below this take the most likely token."""
MAX_TEMPERATURE = 1e30
"""Largest temperature: all weights are 1 there already, and beyond it float32 would overflow."""
FAST_PATH_STAGES = ("temperature", "top_k", "top_p", "min_p")
"""Stages of the fast path, in its order."""
BUCKET_SHIFT = 19
"""Low bits of a float32 that a histogram's buckets ignore: a bucket spans a factor of at most 1 + 1/16."""

_OFF: Mapping[str, dict[str, float]] = {
    "penalties": {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0},
    "dry": {"dry_multiplier": 0.0},
    "temperature": {"temperature": 1.0},
    "top_k": {"top_k": 0},
    "typical_p": {"typical_p": 1.0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "xtc": {"xtc_probability": 0.0},
}


@dataclass(frozen=True, slots=True)
class SamplerPlan:
    """How tokens of one request are sampled."""

    effective_params: SamplingParams | None
    """The request's parameters with the stages that it leaves out turned off; None: it leaves none out."""
    has_penalties: bool
    """Whether penalties are the first stage, so that they can be applied to all rows at once."""
    logits_processors: tuple[str, ...]
    """Stages of ``LOGITS_PROCESSORS`` that follow, before bias and masks, in order."""
    truncations: tuple[str, ...] | None
    """The stages after these, in order; None: the fast path samples by them."""


@lru_cache(maxsize=256)
def sampler_plan(params: SamplingParams) -> SamplerPlan:
    """The plan for these parameters."""
    left_out = [stage for stage in SAMPLERS if stage not in params.samplers]
    disabled = {name: value for stage in left_out for name, value in _OFF[stage].items()}
    stages = [stage for stage in params.samplers if _is_on(stage, params)]
    if "temperature" in stages and params.temperature < GREEDY_BELOW:  # the stages after it would have one token left
        stages = stages[: stages.index("temperature") + 1]
    num_processors = 0
    while num_processors < len(stages) and stages[num_processors] in LOGITS_PROCESSORS:
        num_processors += 1
    penalized = stages[:1] == ["penalties"]
    truncations = tuple(stages[num_processors:])
    fast = truncations == tuple(stage for stage in FAST_PATH_STAGES if stage in truncations)
    effective_params = replace(params, **disabled) if disabled else None  # type: ignore[arg-type]
    return SamplerPlan(
        effective_params, penalized, tuple(stages[penalized:num_processors]), None if fast else truncations
    )


def _is_on(stage: str, params: SamplingParams) -> bool:
    if stage == "penalties":
        return params.repeat_last_n > 0 and (
            (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)
        )
    return any(getattr(params, name) != value for name, value in _OFF[stage].items())


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
    buckets = keys.float().view(torch.int32) >> BUCKET_SHIFT
    mass = torch.bincount(buckets, weights=weights).cumsum(0)
    border = locate(mass, target_mass, reach=True)
    taken = buckets < border
    near = (buckets == border).nonzero().squeeze(1)
    near = near[keys[near].sort(stable=True).indices]
    inside = weights[near].cumsum(0) + (mass[border - 1] if border else 0.0)
    taken[near[: locate(inside, target_mass, reach=True) + 1]] = True
    return taken
