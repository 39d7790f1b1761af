"""Completes the terminal's sampling parameters with those that the model's makers recommend; what was given wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mistralrs.api.options.resolve import Origin, ResolvedOptions

if TYPE_CHECKING:
    from mistralrs.engine.config import SamplingParams

FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
"""Fields of ``SamplingParams``, which are also those of a request, by the options that set them."""

SamplingJob = TypeVar("SamplingJob", bound=Any)
"""A job with a field ``sampling``."""


def given_sampling(options: ResolvedOptions) -> frozenset[str]:
    """Returns the fields of ``SamplingParams`` that the command line, the environment or the config file gives."""
    return frozenset(each for name, each in FIELDS.items() if options.origin(name) is not Origin.DEFAULT)


def with_model_sampling(job: SamplingJob, own: Mapping[str, float], given: frozenset[str]) -> SamplingJob:
    """Returns the job with the model's own parameters in place of the terminal's defaults. ``given``: fields that
    stay."""
    sampling: SamplingParams = job.sampling
    changes: dict[str, Any] = {name: value for name, value in own.items() if name not in given}
    found: SamplingJob = replace(job, sampling=replace(sampling, **changes))
    return found
