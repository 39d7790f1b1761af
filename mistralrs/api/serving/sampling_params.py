"""Turns a body's fields into SamplingParams, which has other names and other values for off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mistralrs.api.schemas.request_bodies import SamplingBody
from mistralrs.api.schemas.sentinels import max_tokens_of, repeat_last_n_from, seed_of, top_k_of
from mistralrs.engine.admission import check
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel

_SAME_NAME = (
    "temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length", "ignore_eos", "min_tokens",
)  # fmt: skip
"""Fields that have the same name in a body and in SamplingParams."""
_SAMPLER_NAMES = {"typ_p": "typical_p", "typical": "typical_p", "temp": "temperature"}
"""Our name of a stage by llama.cpp's, where the two differ."""


def sampling_params(
    body: SamplingBody, defaults: SamplingParams, model: ServedModel, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """Returns the body's parameters, completed by those that the model's makers recommend, and by ``defaults``, whose
    seed and logprobs are not used. The seed is random for -1 and if the body has none. Raises RequestError for
    unsupported values."""
    changes: dict[str, Any] = dict(model.info.sampling)
    changes |= {name: value for name in _SAME_NAME if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        changes["top_k"] = top_k_of(body.top_k)
    if body.repeat_last_n is not None:
        changes["repeat_last_n"] = repeat_last_n_from(body.repeat_last_n)
    if body.dry_penalty_last_n is not None:
        changes["dry_last_n"] = None if body.dry_penalty_last_n < 0 else body.dry_penalty_last_n
    if body.dry_sequence_breakers is not None:
        changes["dry_breakers"] = tuple(body.dry_sequence_breakers)
    if body.stop is not None:
        changes["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.stop_token_ids is not None:
        changes["stop_token_ids"] = tuple(body.stop_token_ids)
    if body.logit_bias is not None:
        changes["logit_bias"] = tuple((_token_id(key), bias) for key, bias in body.logit_bias.items())
    if body.samplers is not None:
        changes["samplers"] = _samplers(body.samplers)
    if max_tokens is not None:
        changes["max_tokens"] = max_tokens_of(max_tokens)
    sampling = replace(defaults, **changes, seed=seed_of(body.seed), logprobs=logprobs)
    check(sampling, model.vocab_size)
    return sampling


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10 and str(int(key)) == key):
        raise RequestError('logit_bias must have token ids as its keys, such as "42"', param="logit_bias")
    return int(key)


def _samplers(given: str | Sequence[str]) -> tuple[str, ...]:
    names = [name for name in given.split(";") if name] if isinstance(given, str) else given
    return tuple(_SAMPLER_NAMES.get(name, name) for name in names)
