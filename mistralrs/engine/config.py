"""What a caller may set on the engine and on one request. Plain values; knows no model and no tensor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine, fixed when it starts."""

    num_blocks: int
    """KV blocks in the pool."""
    max_model_len: int
    """Tokens that one sequence may have, prompt and answer together."""
    max_seqs: int = 16
    """Sequences that may run at once."""
    max_batch_tokens: int = 512
    """Tokens that one step may compute."""
    block_size: int = 16
    """Tokens in a KV block."""
    prefix_cache_n: int = 16
    """Finished sequences whose blocks are kept for reuse; 0 turns reuse off."""
    no_kv_cache: bool = False
    """Recompute every sequence from its first token at each step."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token of one request is chosen. The defaults are those of an API request."""

    temperature: float = 1.0
    """Below 1e-7 the most likely token is taken."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    """At most 0 or at least 1 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    """Tokens that the three penalties look back on, prompt included; 0 is none."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int | None = None
    """None: until the end of the text or of the context."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None is off; k asks for the drawn token's and the k best log-probabilities."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be continued."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    truncate: bool = False
    """Drop the beginning of a prompt that is longer than the context instead of refusing it."""
    trim_space: bool = False
    """Drop the space that some tokenizers put before the first word; for answers, not for continuations of a text."""
