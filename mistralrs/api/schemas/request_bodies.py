"""The bodies of requests as clients send them, with fields and ranges.

``prepare`` gives the fields their meaning, and ``parameter_table`` lists those that are served. Undeclared fields are
kept in ``model_extra``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from mistralrs.api.schemas.adapter_bodies import AdapterFields
from mistralrs.api.schemas.body import Body as Body
from mistralrs.api.schemas.field_types import (
    MAX_STOPS,
    Breaker,
    Flag,
    Int,
    Limit,
    Number,
    Prompt,
    Samplers,
    Stop,
    Text,
    Token,
    no_zero,
    within,
)
from mistralrs.api.schemas.grammar_fields import GrammarFields
from mistralrs.api.schemas.sentinels import LARGEST_SEED, LEAST_SEED, MAX_INT
from mistralrs.api.schemas.tool_bodies import ShownTools, ToolFields
from mistralrs.engine.admission import MAX_BREAKERS
from mistralrs.errors import RequestError

MAX_CHOICES = 128
"""Answers to one prompt, at most."""
MAX_MESSAGES = 10_000
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 65536
MAX_HOOKS = 16


def _as_parts(content: object) -> object:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return _array(content, "a text, or an array of parts")


def _as_messages(messages: object) -> object:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return _array(messages, "a text, or an array of messages")


def _array(value: object, words: str) -> object:
    """Returns the value, if it is an array or nothing. Raises pydantic's error, which has these words, for others."""
    if value is not None and not isinstance(value, list):
        raise PydanticCustomError("shape", "Input should be {words}", {"words": words})
    return value


class ContentPart(Body):
    """A piece of a message. Types other than ``text`` are refused."""

    type: Text
    text: Text | None = None


class MessageBody(Body):
    """One turn. Fields that are not declared reach the chat template."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        list[ContentPart] | None, BeforeValidator(_as_parts, json_schema_input_type=Text | list[ContentPart] | None)
    ] = None
    name: Text | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: Text | None = None


Messages = Annotated[
    list[MessageBody],
    BeforeValidator(_as_messages, json_schema_input_type=Text | list[MessageBody]),
    Field(min_length=1, max_length=MAX_MESSAGES),
]


class StreamOptions(Body):
    """Additional parts of a stream."""

    include_usage: Flag | None = None


class TemplateOptions(Body):
    """Options of rendering messages into a prompt."""

    add_generation_prompt: Flag | None = None
    """The prompt ends where the answer begins; null is true, unless ``continue_final_message``."""
    continue_final_message: Flag | None = None
    """The last message stays open, to be continued."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template."""


class SamplingBody(AdapterFields, GrammarFields):
    """Fields that chat and text completions share. null is the same as not there."""

    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[Int, Field(ge=LEAST_SEED, le=LARGEST_SEED)] | None = None
    """Choice i samples with seed + i; null and -1 are a random seed, which ``timings`` reports."""
    stop: Stop | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOPS)] | None = None
    min_tokens: Annotated[Int, Field(ge=0, le=MAX_INT)] | None = None
    ignore_eos: Flag | None = None
    temperature: Annotated[Number, within("temperature")] | None = None
    """0 takes the most likely token."""
    top_k: Annotated[Int, Field(ge=-1, le=MAX_INT)] | None = None
    """-1 and 0 are off."""
    top_p: Annotated[Number, within("top_p")] | None = None
    """0 takes the most likely token; 1 is off."""
    min_p: Annotated[Number, within("min_p")] | None = None
    typical_p: Annotated[Number, within("typical_p")] | None = Field(
        None, validation_alias=AliasChoices("typical_p", "typ_p")
    )
    """0 takes the most likely token; 1 is off."""
    presence_penalty: Annotated[Number, within("presence_penalty")] | None = None
    frequency_penalty: Annotated[Number, within("frequency_penalty")] | None = None
    repetition_penalty: Annotated[Number, within("repetition_penalty")] | None = Field(
        None, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")
    )
    repeat_last_n: Annotated[Int, Field(ge=-1, le=MAX_INT)] | None = None
    """The number of last tokens that the three penalties cover; -1 is all."""
    xtc_probability: Annotated[Number, within("xtc_probability")] | None = None
    xtc_threshold: Annotated[Number, within("xtc_threshold")] | None = None
    dry_multiplier: Annotated[Number, within("dry_multiplier")] | None = None
    dry_base: Annotated[Number, within("dry_base")] | None = None
    dry_allowed_length: Annotated[Int, Field(ge=1, le=MAX_INT)] | None = None
    dry_penalty_last_n: Annotated[Int, Field(ge=-1, le=MAX_INT)] | None = None
    """-1 is all."""
    dry_sequence_breakers: Annotated[list[Breaker], Field(max_length=MAX_BREAKERS)] | None = None
    samplers: Samplers | None = None
    """The stages of sampling in their order; one that is not named is off."""
    logit_bias: Annotated[dict[str, Number], Field(max_length=MAX_BIASES)] | None = None
    """By token id, as a string."""
    logits_processors: Annotated[list[Text], Field(max_length=MAX_HOOKS)] | None = None
    stopping_rules: Annotated[list[Text], Field(max_length=MAX_HOOKS)] | None = None
    """Names of the functions of ``--plugin`` that take part in sampling, in their order."""
    cache_prompt: Flag | None = None
    timings_per_token: Flag | None = None
    scalings: Flag | None = None
    """The answer has X-LoRA's weights of each token, layer and adapter; not streamed."""
    # From here on: ignored or refused fields, see ``parameter_table``.
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    include_stop_str_in_output: Any = None
    skip_special_tokens: Any = None


class ChatCompletionBody(ToolFields, SamplingBody, TemplateOptions):
    """``POST /v1/chat/completions``"""

    messages: Messages
    max_completion_tokens: Annotated[Limit, AfterValidator(no_zero)] | None = None
    """null, -1 and -2: to the end of the text or of the context."""
    max_tokens: Annotated[Limit, AfterValidator(no_zero)] | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "n_predict")
    )
    """Counts only where ``max_completion_tokens`` is not given."""
    logprobs: Flag | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    # From here on: ignored or refused fields, see ``parameter_table``.
    verbosity: Any = None
    prediction: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    chat_template: Any = None


class CompletionBody(SamplingBody):
    """``POST /v1/completions``"""

    prompt: Prompt
    max_tokens: Limit | None = Field(None, validation_alias=AliasChoices("max_tokens", "n_predict"))
    """null, -1 and -2: to the end of the text or of the context. 0: no new tokens; with ``echo``, only the prompt."""
    best_of: Annotated[Int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: Flag | None = None
    suffix: Text | None = None
    """Appended to each choice as it is; nothing is filled in."""
    logprobs: Annotated[Int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class EmbeddingBody(AdapterFields):
    """``POST /v1/embeddings``"""

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of little-endian float32."""
    dimensions: Annotated[Int, Field(ge=1, le=MAX_INT)] | None = None
    """The length of the vectors; only the model's own is accepted."""
    pooling: Literal["mean", "last"] | None = None
    user: Any = None


class TokenizeBody(TemplateOptions, ShownTools):
    """``POST /tokenize``, as llama.cpp (``content``) and vLLM (``prompt``, ``messages``) have it."""

    model: Text | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special: Flag | None = None
    add_special_tokens: Flag | None = None
    """Put BOS in front where the tokenizer does so; null is yes for ``prompt`` and no for ``content``."""
    parse_special: Flag | None = None
    """Text that spells a control token becomes that token; null is true."""
    with_pieces: Flag | None = None
    """The answer has each token's text."""


class DetokenizeBody(Body):
    """``POST /detokenize``"""

    model: Text | None = None
    tokens: list[Token]


class ApplyTemplateBody(TemplateOptions, ShownTools):
    """``POST /apply-template``"""

    model: Text | None = None
    messages: Messages


BodyType = TypeVar("BodyType", bound=BaseModel)


def parse(kind: type[BodyType], data: bytes) -> BodyType:
    """Returns a body from JSON. Raises RequestError with the first error in it."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise validation_error(error.errors(include_url=False, include_input=False)) from None


def validation_error(errors: Sequence[Mapping[str, Any]]) -> RequestError:
    """Returns the first of pydantic's errors in a sentence, with the path of the field, such as
    ``messages[2].content``.
    """
    first = errors[0]
    param = _path(first["loc"]) or None
    words = str(first["msg"])
    if first["type"] == "missing":
        return RequestError(f"{param} is required", param=param)
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not valid JSON: {_lowered(words.removeprefix('Invalid JSON: '))}")
    subject = param or "the body"
    if words.startswith("Input should be "):
        return RequestError(f"{subject} must be {words.removeprefix('Input should be ')}", param=param)
    return RequestError(f"{subject}: {_lowered(words)}", param=param)


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            # the client chose this key: it may be long, and its beginning suffices
            name = step if re.fullmatch(r"[\w.-]{1,64}", step) else repr(step[:32])
            path += f".{name}" if path else name
    return path


def _lowered(words: str) -> str:
    return words[:1].lower() + words[1:]
