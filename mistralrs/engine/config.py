"""Options of the engine and of one request, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.ops.kv_groups import KvGroup

if TYPE_CHECKING:
    from mistralrs.engine.request_hooks import HookNames, Hooks

SAMPLERS = ("penalties", "dry", "temperature", "top_k", "typical_p", "top_p", "min_p", "xtc")
"""The stages of sampling in their default order."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine, fixed when it starts."""

    kv_groups: tuple[KvGroup, ...]
    """The KV groups of the model's layers, each with its blocks, in the model's order."""
    max_model_len: int
    """Tokens that one sequence may have, prompt and answer together."""
    max_seqs: int = 16
    """Sequences that may run at once."""
    max_queue: int | None = None
    """Sequences that may wait to run; None: any number."""
    max_batch_tokens: int = 512
    """Tokens that one step may compute."""
    max_prompt_logits: int = 64
    """Prompt positions whose logits one step may return, in addition to one position of each sequence."""
    block_size: int = 16
    """Tokens in a KV block."""
    prefix_cache_n: int = 16
    """Finished sequences whose blocks are kept for reuse; 0 turns reuse off."""
    max_evictable_blocks: int = 0
    """Blocks of older sequences, in each KV group, that stay until their memory is needed."""
    no_kv_cache: bool = False
    """Recomputes every sequence from its first token at each step."""
    max_draft: int = 0
    """Draft tokens of one sequence in one step, at most; 0 is off. There are none without a KV cache."""
    weighs_drafts: bool = False
    """Makes draft tokens only where measured times say that they gain; otherwise wherever there is room."""
    max_adapters: int = 0
    """Adapter slots of the model; 0: no adapter can act."""
    shared_answer_tokens: int | None = None
    """Tokens of an answer whose KV depends on the tokens before them alone; None: all. KV of later ones is never
    reused, and the last of these tokens is computed again when a sequence is computed again (non-granular X-LoRA)."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token of one request is chosen. The defaults are those of an API request."""

    temperature: float = 1.0
    """A value below 1e-7 takes the most likely token."""
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    """0 takes the most likely token; 1 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    """Last tokens to which the three penalties apply, prompt included; 0 is none; a larger number than there are is
    all."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int | None = None
    """None: until the end of the text or of the context."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer as the end of the text does."""
    ignore_eos: bool = False
    min_tokens: int = 0
    """Tokens that the answer has at least; until then no token is sampled that ends it."""
    logprobs: int | None = None
    """None is off; k asks for the log-probabilities of the sampled token and of the k most likely ones."""
    typical_p: float = 1.0
    """Probability mass of the tokens to keep, those whose surprise is nearest to the expected one first; 0 takes the
    most likely token; 1 is off."""
    xtc_probability: float = 0.0
    """Probability with which XTC leaves out likely tokens; 0 is off."""
    xtc_threshold: float = 0.1
    """Probability from which on a token counts as likely. XTC leaves out all likely tokens but the least likely one."""
    dry_multiplier: float = 0.0
    """Penalty that DRY subtracts from the logit of a token that would extend a repetition; 0 is off."""
    dry_base: float = 1.75
    """Factor of the penalty for each token of the repetition beyond ``dry_allowed_length``."""
    dry_allowed_length: int = 2
    """Tokens of the shortest repetition that is penalized."""
    dry_last_n: int | None = None
    """Last tokens that DRY searches for repetitions, prompt included; None: all."""
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    """Texts at which a repetition starts afresh."""
    samplers: tuple[str, ...] = SAMPLERS
    """Stages in the order in which they are applied; a stage that is left out is off.

    Bias, masks and log-probabilities come before the first stage that is neither penalties nor DRY."""


@dataclass(frozen=True, slots=True)
class RequestAdapter:
    """An adapter that acts on a request. It has no name here: its slot says where it is, its digest says what it is."""

    slot: int
    """The slot of the model in which it stays until the request has ended."""
    digest: bytes
    """Hash (16 bytes) of all that decides its results."""
    weight: float = 1.0
    """Factor on its additions; with 0 it does not act."""
    invocation_tokens: tuple[int, ...] = ()
    """aLoRA (Greenewald et al. 2025): it acts from the last occurrence of these in the prompt on, and not at all
    without one. Empty: it acts on every token."""


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """The tokens that an answer may think."""

    tokens: int
    """Tokens of all its thoughts together, without their markers; the rest of a character may follow."""
    open: str
    """The text that begins a thought. Names of control tokens are text here."""
    close: str
    """The text that ends one."""
    closing: tuple[int, ...]
    """Tokens, those of ``close`` among them, that follow a thought that has used up its tokens."""
    is_open: bool = False
    """Whether the prompt has begun a thought."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be continued."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    truncate: bool = False
    """Drops the beginning of a prompt that is longer than the context instead of refusing it."""
    trim_space: bool = False
    """Drops the space that some tokenizers put before the first word; for answers, not for continuations of a text."""
    prompt_logprobs: int | None = None
    """k asks, at each prompt token, for its log-probability and the k best; the prefix cache is then not used."""
    pooling: Literal["mean", "last"] | None = None
    """Not None: no token is sampled; the request yields the pooled hidden states of the prompt."""
    hidden_states: bool = False
    """Asks for the hidden state of each prompt token beside the pooled ones; the prefix cache is then not used."""
    reuse: bool = True
    """Takes KV from the prefix cache."""
    cache_salt: str = ""
    """Requests share KV only where this is equal."""
    deadline_s: float | None = None
    """Seconds after submission at which the request fails; None: never."""
    adapters: tuple[RequestAdapter, ...] = ()
    """Adapters that act on it, in any order."""
    wants_scalings: bool = False
    """Asks for the scalings of its tokens, if the executor has some. Tokens from the prefix cache have none."""
    grammar: GrammarText | None = None
    """The answer matches it; None: any text."""
    spelled_tokens: frozenset[int] = frozenset()
    """Control tokens whose names are part of the answer's text, because the caller reads them as markers."""
    thinking: ThinkingBudget | None = None
    """None: it thinks as long as it likes."""
    hooks: Hooks | None = None
    """Functions that take part in sampling; only for an engine in the caller's process."""
    hook_names: HookNames | None = None
    """The same by names that the engine knows, in place of ``hooks``."""
