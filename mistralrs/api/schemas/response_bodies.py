"""The bodies of answers, declared for the documentation of the interface; answers are built elsewhere.

A test compares real answers with these.
"""

from __future__ import annotations

from typing import Any, Literal

from mistralrs.api.schemas.body import Part as Part
from mistralrs.api.schemas.message_bodies import AnswerMessage, ChunkDelta

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class CachedTokens(Part):
    cached_tokens: int
    """Prompt tokens whose KV came from earlier requests."""


class ReasoningTokens(Part):
    reasoning_tokens: int
    """Tokens of the model's thinking, the mark of its end among them."""


class Usage(Part):
    """Token counts: each prompt once, and all generated tokens, shown or not."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class Timings(Part):
    """Sums over all choices; rates in tokens a second, null where no time passed."""

    avg_tok_per_sec: float | None
    avg_prompt_tok_per_sec: float | None
    avg_compl_tok_per_sec: float | None
    total_time_sec: float
    total_prompt_time_sec: float
    """Seconds until the first token of a choice, waiting included."""
    total_completion_time_sec: float
    """Seconds from the first token on."""
    seed: int
    """The seed of choice 0; choice i sampled with seed + i."""
    draft_n: int | None = None
    """Draft tokens that were proposed; absent if there were none."""
    draft_n_accepted: int | None = None
    """Draft tokens that were accepted."""


class ChunkTimings(Part):
    """The timings of one choice until now."""

    completion_tokens: int
    total_time_sec: float
    avg_compl_tok_per_sec: float | None


class CandidateToken(Part):
    token: str
    logprob: float
    """Natural logarithm; -9999 for an impossible token."""
    bytes: list[int]
    """The token's bytes, which need not be whole characters."""


class DrawnToken(CandidateToken):
    top_logprobs: list[CandidateToken]


class ChatLogprobs(Part):
    content: list[DrawnToken]


class CompletionLogprobs(Part):
    """Lists of equal length; the first token of an echoed prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters from the beginning of the choice's text."""


class TokenScalings(Part):
    position: int
    """From the beginning of the prompt."""
    id: int
    text: str
    weights: list[list[float]]
    """For each layer, a weight for each adapter."""


class ChoiceScalings(Part):
    """X-LoRA's weights of the tokens of prompt and answer that were computed; the last sampled one is not."""

    adapters: list[str]
    layers: list[str]
    """Paths of modules."""
    tokens: list[TokenScalings]
    omitted_tokens: int
    """Tokens after these, whose weights were left out: an answer has at most 1,048,576 of them."""


class ChatChoice(Part):
    index: int
    message: AnswerMessage
    finish_reason: ChatFinishReason
    logprobs: ChatLogprobs | None
    scalings: ChoiceScalings | None = None
    """Absent unless asked for."""


class _Answer(Part):
    id: str
    created: int
    """Seconds since 1970."""
    model: str
    """The served model, or the adapter that the request named as its model."""
    system_fingerprint: Literal["local"]
    adapter_generation: int | None = None
    """Absent where no adapter acts; of a stream in the last choice's last chunk. It grows whenever an adapter's name
    comes to mean another adapter, or none."""


class ChatCompletion(_Answer):
    """The answer to ``POST /v1/chat/completions``"""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings


class ChatChunkChoice(Part):
    index: int
    delta: ChunkDelta
    finish_reason: ChatFinishReason | None
    logprobs: ChatLogprobs | None


class ChatCompletionChunk(_Answer):
    """An event of a streamed answer to ``POST /v1/chat/completions``"""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    """Empty in the chunk that holds the usage."""
    usage: Usage | None = None
    """Present only with ``include_usage``."""
    timings: Timings | ChunkTimings | None = None
    """Present in the last choice's last chunk, and in others with ``timings_per_token``."""


class CompletionChoice(Part):
    index: int
    text: str
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None
    scalings: ChoiceScalings | None = None
    """Absent unless asked for."""


class Completion(_Answer):
    """The answer to ``POST /v1/completions``"""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage
    timings: Timings


class CompletionChunkChoice(Part):
    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None


class CompletionChunk(_Answer):
    """An event of a streamed answer to ``POST /v1/completions``"""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    timings: Timings | ChunkTimings | None = None


class EmbeddingEntry(Part):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or the base64 of little-endian float32."""


class EmbeddingUsage(Part):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Part):
    """The answer to ``POST /v1/embeddings``"""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage
    adapter_generation: int | None = None
    """Absent where no adapter acts."""


class ModelMeta(Part):
    n_ctx: int
    n_ctx_train: int


class ModelCard(Part):
    """A model, with the length of its context under every name that clients read."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    context_length: int
    meta: ModelMeta
    capabilities: list[str]
    """``completion``, ``embedding``, ``structured_outputs``; and where the model can do so: ``chat``, ``tools``,
    ``forced_tools`` (``tool_choice`` other than auto, ``strict``), ``thinking``, ``thinking_budget``."""
    default_sampling: dict[str, float]
    """The sampling parameters that the model's makers recommend, which requests get that do not say."""
    root: str | None = None
    """Of an adapter: where it came from."""
    parent: str | None = None
    """Of an adapter: the model that it acts on."""


class ModelList(Part):
    """The answer to ``GET /v1/models``"""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorFacts(Part):
    message: str
    type: str
    param: str | None
    """The path of the field, such as ``messages[2].content``."""
    code: str | None


class Error(Part):
    """Any answer with a status from 400 on, and the last event of a stream that failed."""

    error: ErrorFacts
    partial_response: dict[str, Any] | None = None
    """The part of the answer that existed when the engine failed."""


class PieceOfText(Part):
    id: int
    piece: str | list[int]
    """The token's text; its bytes, where these are no text."""


class Tokens(Part):
    """The answer to ``POST /tokenize``"""

    tokens: list[int] | list[PieceOfText]
    count: int
    max_model_len: int


class Detokenized(Part):
    """The answer to ``POST /detokenize``: the text under the names of llama.cpp and vLLM."""

    content: str
    prompt: str


class AppliedTemplate(Part):
    """The answer to ``POST /apply-template``"""

    prompt: str
