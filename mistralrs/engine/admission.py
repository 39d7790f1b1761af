"""What a request must satisfy before it is queued, so that nothing of it can fail later.

Knows ranges and lengths; no model and no tensor.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from mistralrs.engine.config import EngineConfig, Request, SamplingParams
from mistralrs.errors import ContextLengthError, RequestError, UsageError

logger = logging.getLogger(__name__)

TRUNCATION_RESERVE = 10
"""Tokens that truncation leaves free for the answer when ``max_tokens`` does not say how many."""


MAX_BIAS = 1e30
"""Beyond it float32 could overflow; far smaller values already force or ban a token."""


def check_config(config: EngineConfig) -> None:
    """Raises UsageError for limits under which no request could be served."""
    for name in ("num_blocks", "max_model_len", "max_seqs", "max_batch_tokens", "block_size"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if config.prefix_cache_n < 0:
        raise UsageError(f"prefix_cache_n is {config.prefix_cache_n}; it must be at least 0 (0 turns reuse off)")


def check(params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestError naming the first parameter that is out of its range."""
    _require("temperature", params.temperature, params.temperature >= 0, "at least 0")
    _require("top_k", params.top_k, params.top_k >= 0, "at least 0 (0 is off)")
    _require("top_p", params.top_p, True, "a number (at most 0 or at least 1 is off)")
    _require("min_p", params.min_p, 0 <= params.min_p <= 1, "between 0 and 1")
    _require("repetition_penalty", params.repetition_penalty, params.repetition_penalty > 0, "more than 0 (1 is off)")
    _require("frequency_penalty", params.frequency_penalty, True, "a number")
    _require("presence_penalty", params.presence_penalty, True, "a number")
    _require("repeat_last_n", params.repeat_last_n, params.repeat_last_n >= 0, "at least 0 (0 looks at nothing)")
    _require("seed", params.seed, -(2**63) <= params.seed < 2**64, "a 64-bit integer")
    if params.max_tokens is not None:
        _require("max_tokens", params.max_tokens, params.max_tokens >= 1, "at least 1")
    if params.logprobs is not None:
        in_range = 0 <= params.logprobs <= vocab_size
        _require("logprobs", params.logprobs, in_range, f"between 0 and {vocab_size}")
    for token, bias in params.logit_bias:
        if not 0 <= token < vocab_size:
            message = f"logit_bias names token {token}; the vocabulary has the ids 0 to {vocab_size - 1}"
            raise RequestError(message, param="logit_bias")
        _require("logit_bias", bias, abs(bias) <= MAX_BIAS, f"between {-MAX_BIAS:g} and {MAX_BIAS:g}")
    if "" in params.stop:
        raise RequestError("stop holds an empty string", hint="leave it out", param="stop")


def _require(name: str, value: float, in_range: bool, range_words: str) -> None:
    # An int may be too large for a float, but it is finite.
    if not in_range or (isinstance(value, float) and not math.isfinite(value)):
        raise RequestError(f"{name} is {value}; it must be {range_words}", param=name)


def fit_prompt(request: Request, max_len: int, vocab_size: int) -> list[int]:
    """The prompt's tokens, cut at the front if it is longer than ``max_len`` and the request allows it.

    Raises RequestError for an empty prompt or ids outside the vocabulary, ContextLengthError for one that does not fit.
    """
    prompt = request.prompt
    if not prompt:
        raise RequestError("the prompt has no tokens", hint="send some text", param="prompt")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        outside = next(token for token in prompt if not 0 <= token < vocab_size)
        message = f"the prompt holds token {outside}; the vocabulary has the ids 0 to {vocab_size - 1}"
        raise RequestError(message, param="prompt")
    if len(prompt) <= max_len:
        return list(prompt)
    kept = _truncated(prompt, max_len, request.sampling.max_tokens) if request.truncate else ()
    if not kept:
        raise ContextLengthError(len(prompt), max_len)
    return list(kept)


def _truncated(prompt: Sequence[int], max_len: int, max_tokens: int | None) -> Sequence[int]:
    """The end of a prompt that is too long: what fits beside room for the answer, or nothing."""
    over = len(prompt) - max_len
    reserve = TRUNCATION_RESERVE
    if max_tokens is not None and over + max_tokens < len(prompt):
        reserve = max_tokens
    dropped = over + reserve
    kept = prompt[dropped:]
    if kept:
        logger.warning(
            "The prompt has %d tokens and the context holds %d: the first %d tokens were cut, the last %d are kept.",
            *(len(prompt), max_len, dropped, len(kept)),
        )
    return kept
