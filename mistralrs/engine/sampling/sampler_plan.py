"""The plan by which tokens of a request are sampled: the stages that are on, in their order. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from mistralrs.engine.config import SAMPLERS, SamplingParams

GREEDY_BELOW = 1e-7
"""Temperatures below this take the most likely token."""
FAST_PATH_STAGES = ("temperature", "top_k", "top_p", "min_p")
"""Stages of the fast path, in its order."""
PROCESSORS = ("penalties", "dry")
"""Stages that change scores; where they lead, they come before bias and masks."""

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
    stages: tuple[str, ...]
    """The stages that act, in order."""
    num_processors: int
    """Leading stages that are ``PROCESSORS``."""

    @property
    def has_penalties(self) -> bool:
        """Whether penalties are the first stage, so that they can be applied to all rows at once."""
        return self.stages[:1] == ("penalties",)

    @property
    def logits_processors(self) -> tuple[str, ...]:
        """The leading processors after such penalties, in order."""
        return self.stages[self.has_penalties : self.num_processors]

    @property
    def truncations(self) -> tuple[str, ...] | None:
        """The stages after the processors, in order; None: the fast path samples by them."""
        truncations = self.stages[self.num_processors :]
        is_fast = truncations == tuple(stage for stage in FAST_PATH_STAGES if stage in truncations)
        return None if is_fast else truncations


@lru_cache(maxsize=256)
def sampler_plan(params: SamplingParams) -> SamplerPlan:
    """The plan for these parameters."""
    left_out = [stage for stage in SAMPLERS if stage not in params.samplers]
    disabled = {name: value for stage in left_out for name, value in _OFF[stage].items()}
    stages = [stage for stage in params.samplers if _is_on(stage, params)]
    if "temperature" in stages and params.temperature < GREEDY_BELOW:  # the stages after it would have one token left
        stages = stages[: stages.index("temperature") + 1]
    num_processors = 0
    while num_processors < len(stages) and stages[num_processors] in PROCESSORS:
        num_processors += 1
    effective_params = replace(params, **disabled) if disabled else None  # type: ignore[arg-type]
    return SamplerPlan(effective_params, tuple(stages), num_processors)


def _is_on(stage: str, params: SamplingParams) -> bool:
    if stage == "penalties":
        return params.repeat_last_n > 0 and (
            (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)
        )
    return any(getattr(params, name) != value for name, value in _OFF[stage].items())
