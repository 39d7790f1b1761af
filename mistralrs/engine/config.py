"""What a caller may set on the engine and on one request. Plain values; knows no model and no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mistralrs.ops.kv_groups import KvGroup

SAMPLERS = ("penalties", "dry", "temperature", "top_k", "typical_p", "top_p", "min_p", "xtc")
"""The stages that turn logits into what is drawn from, in their usual order."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine, fixed when it starts."""

    kv_groups: tuple[KvGroup, ...]
    """The blocks that the model's layers have, in the model's order."""
    max_model_len: int
    """Tokens that one sequence may have, prompt and answer together."""
    max_seqs: int = 16
    """Sequences that may run at once."""
    max_queue: int | None = None
    """Sequences that may wait for one of those places; None: any number."""
    max_batch_tokens: int = 512
    """Tokens that one step may compute."""
    max_prompt_logits: int = 64
    """Places in prompts whose logits one step may return, beside one of every sequence."""
    block_size: int = 16
    """Tokens in a KV block."""
    prefix_cache_n: int = 16
    """Finished sequences whose blocks are kept for reuse; 0 turns reuse off."""
    max_evictable_blocks: int = 0
    """Blocks of older ones, in each KV group, that stay until their memory is needed."""
    no_kv_cache: bool = False
    """Recompute every sequence from its first token at each step."""
    max_draft: int = 0
    """Tokens guessed for one sequence in one step, at most; 0 is off. Nothing is guessed without a KV cache."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token of one request is chosen. The defaults are those of an API request."""

    temperature: float = 1.0
    """Below 1e-7 the most likely token is taken."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    """0 takes the most likely token; 1 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    """Tokens that the three penalties look back on, prompt included; 0 is none; more than there are is all."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int | None = None
    """None: until the end of the text or of the context."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer as the end of the text does."""
    ignore_eos: bool = False
    min_tokens: int = 0
    """Tokens to draw before one may be drawn that ends the answer."""
    logprobs: int | None = None
    """None is off; k asks for the drawn token's and the k best log-probabilities."""
    typical_p: float = 1.0
    """The share that the tokens make up whose surprise is nearest to the expected one; 0 takes the most likely token;
    1 is off."""
    xtc_probability: float = 0.0
    """How often XTC leaves out likely tokens; 0 is off."""
    xtc_threshold: float = 0.1
    """A token that is at least this likely is likely; XTC leaves all of them out but for the least likely one."""
    dry_multiplier: float = 0.0
    """What DRY takes off the logit of a token that would make a repetition longer; 0 is off."""
    dry_base: float = 1.75
    """Times as much for each token that is repeated already beyond ``dry_allowed_length``."""
    dry_allowed_length: int = 2
    """The shortest repetition that is held against the token after it, in tokens."""
    dry_last_n: int | None = None
    """Tokens that DRY looks back on, prompt included; None: all."""
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts that a repetition does not reach across."""
    samplers: tuple[str, ...] = SAMPLERS
    """Stages in the order in which they are applied; one that is left out is off.

    Bias and masks come before the first that is neither penalties nor DRY, and so do log-probabilities."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be continued."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    truncate: bool = False
    """Drop the beginning of a prompt that is longer than the context instead of refusing it."""
    trim_space: bool = False
    """Drop the space that some tokenizers put before the first word; for answers, not for continuations of a text."""
    prompt_logprobs: int | None = None
    """k asks for each prompt token's and the k best log-probabilities at its place; such a prompt is computed whole."""
    pooling: Literal["mean", "last"] | None = None
    """Not None: nothing is drawn; the request yields the pooled hidden states of the prompt."""
    reuse: bool = True
    """Take KV from the prefix cache."""
    cache_salt: str = ""
    """KV is shared only among requests with the same."""
    deadline_s: float | None = None
    """Seconds from submission after which the request fails; None: never."""
