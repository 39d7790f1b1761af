"""Checks that a request must pass before it is queued, so that its parameters cannot fail it later."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mistralrs.engine.config import SAMPLERS, EngineConfig, Request, RequestAdapter, SamplingParams
from mistralrs.errors import ContextLengthError, QueueFullError, RequestError, UsageError

logger = logging.getLogger(__name__)

TRUNCATION_RESERVE = 10
"""Tokens that truncation leaves free for the answer if ``max_tokens`` is None or too large."""
MAX_BIAS = 1e30
"""Largest bias, since float32 could overflow beyond it; far smaller values already force or ban a token."""
MAX_BREAKERS = 64
MAX_BREAKER_LENGTH = 64
"""Characters of one breaker."""
DIGEST_BYTES = 16
"""Bytes of an adapter's digest: block hashes are taken over digests of one length."""
MAX_ADAPTER_WEIGHT = 3.4e38
"""Largest weight of an adapter: a larger one is no finite float32."""
MAX_PROMPT_LOGPROBS = 100
"""Most likely tokens at each prompt position, at most; a long prompt has many positions."""


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a parameter may take, both ends included."""

    least: float
    most: float
    note: str = ""
    """The value that turns the parameter off, for error messages."""


RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, "1 is off"),
    "min_p": Range(0, 1, "0 is off"),
    "typical_p": Range(0, 1, "1 is off"),
    "repetition_penalty": Range(0.01, 100, "1 is off"),
    "frequency_penalty": Range(-100, 100, "0 is off"),
    "presence_penalty": Range(-100, 100, "0 is off"),
    "xtc_probability": Range(0, 1, "0 is off"),
    "xtc_threshold": Range(0, 1),
    "dry_multiplier": Range(0, 1000, "0 is off"),
    "dry_base": Range(1, 1000),
}
"""Ranges of SamplingParams' real-valued fields. Request bodies and the command line have the same."""


def check_config(config: EngineConfig) -> None:
    """Raises UsageError for limits under which no request could be served."""
    for name in ("max_model_len", "max_seqs", "max_batch_tokens", "block_size"):
        if getattr(config, name) < 1:
            raise UsageError(f"{name} is {getattr(config, name)}; it must be at least 1")
    for group in config.kv_groups:
        if group.num_blocks < 1:
            raise UsageError(f"kv_groups has one of {group.num_blocks} blocks; each must have at least 1")
    if config.max_prompt_logits < 0:
        raise UsageError(f"max_prompt_logits is {config.max_prompt_logits}; it must be at least 0")
    if config.max_draft < 0:
        raise UsageError(f"max_draft is {config.max_draft}; it must be at least 0 (0 turns drafting off)")
    if config.max_queue is not None and config.max_queue < 0:
        raise UsageError(f"max_queue is {config.max_queue}; it must be at least 0 (0 lets nobody wait)")
    if config.max_adapters < 0:
        raise UsageError(f"max_adapters is {config.max_adapters}; it must be at least 0 (0 allows none)")
    if config.shared_answer_tokens is not None and config.shared_answer_tokens < 0:
        raise UsageError(f"shared_answer_tokens is {config.shared_answer_tokens}; it must be at least 0")
    if config.prefix_cache_n < 0:
        raise UsageError(f"prefix_cache_n is {config.prefix_cache_n}; it must be at least 0 (0 turns reuse off)")


def check_queue(num_open: int, config: EngineConfig) -> None:
    """Raises QueueFullError if ``num_open`` requests fill all places to run and to wait."""
    if config.max_queue is not None and num_open >= config.max_seqs + config.max_queue:
        raise QueueFullError(config.max_queue)


def check_request(request: Request, vocab_size: int, *, max_adapters: int) -> None:
    """Raises RequestError naming the first parameter that is out of its range; ``fit_prompt`` checks the prompt.

    ``max_adapters``: adapter slots of the model.
    """
    check(request.sampling, vocab_size)
    _check_adapters(request.adapters, max_adapters)
    if request.pooling is not None:
        for name in ("grammar", "hooks", "hook_names", "thinking"):
            if getattr(request, name) is not None:
                raise RequestError(f"a request for an embedding has no answer, hence no {name}", param=name)
    elif request.hidden_states:
        raise RequestError("hidden_states needs pooling: it is for embeddings", param="hidden_states")
    if request.hooks is not None and request.hook_names is not None:
        raise RequestError("a request has hooks or names of hooks, not both", param="hook_names")
    if request.thinking is not None:
        _require("thinking", request.thinking.tokens, request.thinking.tokens >= 0, "at least 0 tokens")
        _require_known("thinking", request.thinking.closing, vocab_size)
    if request.prompt_logprobs is not None:
        highest = min(vocab_size, MAX_PROMPT_LOGPROBS)
        in_range = 0 <= request.prompt_logprobs <= highest
        _require("prompt_logprobs", request.prompt_logprobs, in_range, f"between 0 and {highest}")


def check(params: SamplingParams, vocab_size: int) -> None:
    """Raises RequestError naming the first sampling parameter that is out of its range."""
    for name, allowed in RANGES.items():
        value = getattr(params, name)
        expected = f"between {allowed.least} and {allowed.most}" + (f" ({allowed.note})" if allowed.note else "")
        _require(name, value, allowed.least <= value <= allowed.most, expected)
    _require("top_k", params.top_k, params.top_k >= 0, "at least 0 (0 is off)")
    _require("repeat_last_n", params.repeat_last_n, params.repeat_last_n >= 0, "at least 0 (0 looks at nothing)")
    _require("seed", params.seed, -(2**63) <= params.seed < 2**64, "a 64-bit integer")
    if params.max_tokens is not None:
        _require("max_tokens", params.max_tokens, params.max_tokens >= 0, "at least 0")
    highest = math.inf if params.max_tokens is None else params.max_tokens
    _require("min_tokens", params.min_tokens, 0 <= params.min_tokens <= highest, "at least 0, and at most max_tokens")
    if params.logprobs is not None:
        in_range = 0 <= params.logprobs <= vocab_size
        _require("logprobs", params.logprobs, in_range, f"between 0 and {vocab_size}")
    _require_known("logit_bias", (token for token, _ in params.logit_bias), vocab_size)
    _require_known("stop_token_ids", params.stop_token_ids, vocab_size)
    for _, bias in params.logit_bias:
        _require("logit_bias", bias, abs(bias) <= MAX_BIAS, f"between {-MAX_BIAS:g} and {MAX_BIAS:g}")
    if "" in params.stop:
        raise RequestError("stop holds an empty string", hint="leave it out", param="stop")
    _check_stages(params)


def _check_adapters(adapters: Sequence[RequestAdapter], max_adapters: int) -> None:
    slots = [adapter.slot for adapter in adapters]
    for adapter in adapters:
        if not 0 <= adapter.slot < max_adapters:
            message = f"adapters names slot {adapter.slot}; the model has {max_adapters} adapter slots"
            raise RequestError(message, hint="--max-adapters sets their number", param="adapters")
        if slots.count(adapter.slot) > 1:
            raise RequestError(f"adapters names slot {adapter.slot} twice", param="adapters")
        if not abs(adapter.weight) <= MAX_ADAPTER_WEIGHT:
            message = f"adapters has a weight of {adapter.weight}; it must be a finite number"
            raise RequestError(message, param="adapters")
        if len(adapter.digest) != DIGEST_BYTES:
            message = f"adapters has a digest of {len(adapter.digest)} bytes; it must have {DIGEST_BYTES}"
            raise RequestError(message, param="adapters")


def _check_stages(params: SamplingParams) -> None:
    _require("dry_allowed_length", params.dry_allowed_length, params.dry_allowed_length >= 1, "at least 1")
    if params.dry_last_n is not None:
        _require("dry_last_n", params.dry_last_n, params.dry_last_n >= 0, "at least 0 (0 looks at nothing)")
    breakers = params.dry_breakers
    if len(breakers) > MAX_BREAKERS or not all(1 <= len(breaker) <= MAX_BREAKER_LENGTH for breaker in breakers):
        limits = f"at most {MAX_BREAKERS} texts of 1 to {MAX_BREAKER_LENGTH} characters"
        raise RequestError(f"dry_breakers must be {limits}", param="dry_breakers")
    for stage in params.samplers:
        if stage not in SAMPLERS:
            known = f"known are {', '.join(SAMPLERS)}"
            raise RequestError(f"samplers names {stage[:64]!r}, which is not known", hint=known, param="samplers")
        if params.samplers.count(stage) > 1:
            raise RequestError(f"samplers names {stage} twice", param="samplers")


def _require_known(name: str, tokens: Iterable[int], vocab_size: int) -> None:
    for token in tokens:
        if not 0 <= token < vocab_size:
            message = f"{name} names token {token}; the vocabulary has the ids 0 to {vocab_size - 1}"
            raise RequestError(message, param=name)


def _require(name: str, value: float, in_range: bool, expected: str) -> None:
    # An int may be too large for a float, but it is finite.
    if not in_range or (isinstance(value, float) and not math.isfinite(value)):
        raise RequestError(f"{name} is {value}; it must be {expected}", param=name)


def fit_prompt(
    request: Request, max_len: int, vocab_size: int, *, spell: Callable[[int], str] | None = None
) -> list[int]:
    """The prompt's tokens, truncated at the front if they leave no room in ``max_len`` and the request allows it.
    ``spell`` gives the text of a token, empty for one that the tokenizer does not have.

    A prompt may be as long as ``max_len`` if nothing is to be generated; otherwise it leaves room for one token.
    Raises RequestError for an empty prompt or ids outside the vocabulary, ContextLengthError for one that does not fit.
    """
    prompt = request.prompt
    if not prompt:
        raise RequestError("the prompt has no tokens", hint="send some text", param="prompt")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        outside = next(token for token in prompt if not 0 <= token < vocab_size)
        raise _outside(outside, "" if spell is None else spell(outside), vocab_size)
    max_tokens = request.sampling.max_tokens if request.pooling is None else 0
    if len(prompt) + (max_tokens != 0) <= max_len:
        return list(prompt)
    kept = _truncated(prompt, max_len, max_tokens) if request.truncate else ()
    if not kept:
        raise ContextLengthError(len(prompt), max_len)
    return list(kept)


def _outside(token: int, text: str, vocab_size: int) -> RequestError:
    """The error for a token without an embedding in the model; ``text`` is the tokenizer's, if it has one."""
    if text:
        return RequestError(
            f"the prompt holds token {token}, {text[:64]!r}, for which this model has no embedding",
            hint="leave it out of the prompt: the tokenizer has it, the model does not",
            param="prompt",
        )
    message = f"the prompt holds token {token}; the vocabulary has the ids 0 to {vocab_size - 1}"
    return RequestError(message, param="prompt")


def _truncated(prompt: Sequence[int], max_len: int, max_tokens: int | None) -> Sequence[int]:
    """The last tokens of a prompt that is too long, so that the answer has room; empty if none fit."""
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
