"""The stages of sampling: which of them a request has, and a draw by any of them in any order, one row at a time.

What is usual takes the fast path of ``sampling``, with the same result. Each stage leaves some tokens out and looks at
the probabilities of those that are left, but for top-p: its share is one of all tokens, as the scores then stand.
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
"""Temperatures under this take the most likely token."""
MAX_TEMPERATURE = 1e30
"""Beyond it all weights are 1 anyway, and float32 would make the temperature infinite."""
FAST_PATH_STAGES = ("temperature", "top_k", "top_p", "min_p")
"""What the fast path does, in its order."""
BUCKET_SHIFT = 19
"""Bits of a float32 that a bucket of a histogram ignores: it spans a factor of at most 1 + 1/16."""

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
    """How the rows of one request are drawn."""

    effective_params: SamplingParams | None
    """The request's parameters with the stages that it leaves out switched off; None: it leaves none out."""
    has_penalties: bool
    """Penalties come before all else, so that they can be applied to all rows at once."""
    logits_processors: tuple[str, ...]
    """Stages of ``EDITS`` that then come before bias and masks, in order."""
    truncations: tuple[str, ...] | None
    """The stages after these, in order; None: the fast path does what they do."""


@lru_cache(maxsize=256)
def sampler_plan(params: SamplingParams) -> SamplerPlan:
    """How these parameters are to be served."""
    left_out = [stage for stage in SAMPLERS if stage not in params.samplers]
    off = {name: value for stage in left_out for name, value in _OFF[stage].items()}
    stages = [stage for stage in params.samplers if _is_on(stage, params)]
    if "temperature" in stages and params.temperature < GREEDY_BELOW:  # of one token nothing can be left out
        stages = stages[: stages.index("temperature") + 1]
    edits = 0
    while edits < len(stages) and stages[edits] in LOGITS_PROCESSORS:
        edits += 1
    penalized = stages[:1] == ["penalties"]
    truncations = tuple(stages[edits:])
    fast = truncations == tuple(stage for stage in FAST_PATH_STAGES if stage in truncations)
    settled = replace(params, **off) if off else None  # type: ignore[arg-type]
    return SamplerPlan(settled, penalized, tuple(stages[penalized:edits]), None if fast else truncations)


def _is_on(stage: str, params: SamplingParams) -> bool:
    if stage == "penalties":
        return params.repeat_last_n > 0 and (
            (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)
        )
    return any(getattr(params, name) != value for name, value in _OFF[stage].items())


def sample_staged(scores: torch.Tensor, row: SamplingInput, truncations: tuple[str, ...]) -> int:
    """A token by float32 ``scores`` (vocab_size,), which are left as they are and of which one at least is finite."""
    ids, weights = truncate(scores, row, truncations)
    cumulative = weights.cumsum(0)
    share = uniform(row.params.seed, len(row.tokens))
    return int(ids[locate(cumulative, share * cumulative[-1].item())])


def truncate(
    scores: torch.Tensor, row: SamplingInput, truncations: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens (n,) that the stages ``truncations`` leave, ascending, and float64 weights (n,), the largest 1."""
    left = _Candidates(scores)
    for stage in truncations:
        _STAGES[stage](left, row)
    return left.ids, left.weights()


def exponentials(differences: torch.Tensor) -> torch.Tensor:
    """Weights from scores less their largest, in place.

    What is under e^-80 could not be drawn in the age of the universe, and denormal sums cost a hundredfold.
    """
    return torch.threshold_(differences.clamp_(min=-80.0).exp_(), 2e-35, 0.0)


def locate(cumulative: torch.Tensor, target: float, *, reach: bool = False) -> int:
    """First index whose ``cumulative`` (float64) exceeds ``target`` or, with ``reach``, reaches it. Always valid."""
    total = cumulative[-1].item()
    target = min(target, total if reach else math.nextafter(total, 0.0))
    return int(torch.searchsorted(cumulative, target, right=not reach))


class _Candidates:
    """The tokens that stages have left so far."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores.double()
        """(vocab_size,) of all tokens."""
        self.ids = (scores > -math.inf).nonzero().squeeze(1)
        """(n,) those that are left, ascending."""
        self.values = self.scores[self.ids]
        """(n,) their scores."""

    def keep(self, places: torch.Tensor) -> None:
        """Leaves those at these places: numbers, or bool (n,)."""
        self.ids, self.values = self.ids[places], self.values[places]

    def keep_likeliest(self) -> None:
        """Leaves the first of those with the largest score."""
        self.keep(self.values.argmax().unsqueeze(0))

    def change(self, scores: torch.Tensor) -> None:
        """Gives all tokens other scores (vocab_size,)."""
        self.scores, self.values = scores, scores[self.ids]

    def weights(self) -> torch.Tensor:
        """(n,) probabilities that are not normalized; the largest is 1."""
        return exponentials(self.values - self.values.amax())


def _temperature(left: _Candidates, row: SamplingInput) -> None:
    if row.params.temperature < GREEDY_BELOW:
        left.keep_likeliest()
    else:
        left.change(left.scores / min(row.params.temperature, MAX_TEMPERATURE))


def _top_k(left: _Candidates, row: SamplingInput) -> None:
    values = left.values
    if row.params.top_k >= len(values):
        return
    floor = values.topk(row.params.top_k).values[-1]
    above, equal = values > floor, values == floor
    left.keep(above | (equal & (equal.cumsum(0) <= row.params.top_k - above.sum())))


def _typical_p(left: _Candidates, row: SamplingInput) -> None:
    """Leaves the tokens whose surprise is nearest to the expected one; for a share of 0 the likeliest token, as top-p
    does, although its surprise may not be the nearest."""
    if row.params.typical_p == 0:
        left.keep_likeliest()
        return
    weights = left.weights()
    mass = weights.sum()
    surprise = left.values.amax() - left.values + mass.log()
    expected = (weights * surprise).sum() / mass
    left.keep(_first_to_reach((surprise - expected).abs(), weights, row.params.typical_p * mass.item()))


def _top_p(left: _Candidates, row: SamplingInput) -> None:
    if row.params.top_p == 0:
        left.keep_likeliest()
        return
    top = left.values.amax()
    mass = (left.scores - top).exp().sum().item()
    left.keep(_first_to_reach(top - left.values, left.weights(), row.params.top_p * mass))


def _min_p(left: _Candidates, row: SamplingInput) -> None:
    left.keep(left.weights() >= row.params.min_p)


def _xtc(left: _Candidates, row: SamplingInput) -> None:
    """Now and then leaves out all the tokens that are likely, but for the least likely of them."""
    if uniform(row.params.seed, len(row.tokens), "xtc") >= row.params.xtc_probability:
        return
    weights = left.weights()
    likely = (weights / weights.sum() >= row.params.xtc_threshold).nonzero().squeeze(1)
    if len(likely) > 1:
        least = likely[weights[likely].sort(descending=True, stable=True).indices[-1]]
        kept = torch.ones_like(weights, dtype=torch.bool)
        kept[likely] = False
        kept[least] = True
        left.keep(kept)


def _edit(stage: str) -> Callable[[_Candidates, SamplingInput], None]:
    def edit(left: _Candidates, row: SamplingInput) -> None:
        LOGITS_PROCESSORS[stage](left.scores, row)
        left.change(left.scores)

    return edit


_STAGES: Mapping[str, Callable[[_Candidates, SamplingInput], None]] = {
    **{stage: _edit(stage) for stage in LOGITS_PROCESSORS},
    "temperature": _temperature,
    "top_k": _top_k,
    "typical_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
}


def _first_to_reach(keys: torch.Tensor, weights: torch.Tensor, wanted: float) -> torch.Tensor:
    """The fewest of ``weights`` (n,), by ascending ``keys`` (n,), that make up the mass ``wanted``, as bool (n,).

    Keys are at least 0; equal ones rank by place. At least one is taken, and all where there is not as much. Sorts only
    what is near the border, which a histogram over the leading bits of the keys finds.
    """
    wanted = max(wanted, 5e-324)  # 0 would be made up by none
    buckets = keys.float().view(torch.int32) >> BUCKET_SHIFT
    mass = torch.bincount(buckets, weights=weights).cumsum(0)
    border = locate(mass, wanted, reach=True)
    taken = buckets < border
    near = (buckets == border).nonzero().squeeze(1)
    near = near[keys[near].sort(stable=True).indices]
    inside = weights[near].cumsum(0) + (mass[border - 1] if border else 0.0)
    taken[near[: locate(inside, wanted, reach=True) + 1]] = True
    return taken
