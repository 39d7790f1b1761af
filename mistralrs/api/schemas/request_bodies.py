"""The bodies of requests as clients send them: their fields, their types, their ranges.

``serving.prepare`` gives the fields their meaning, and ``parameter_table`` says which are served. Fields that no body
declares are kept in ``model_extra``. Scalars are strict: ``"1"`` and ``true`` are no numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from mistralrs.api.schemas.sentinels import LARGEST_SEED, LEAST_MAX_TOKENS, LEAST_SEED, MAX_INT
from mistralrs.engine.admission import MAX_BREAKER_LENGTH, MAX_BREAKERS, RANGES
from mistralrs.errors import RequestError

MAX_CHOICES = 128
"""Answers to one prompt."""
MAX_PROMPTS = 2048
"""Prompts of one request."""
MAX_MESSAGES = 10_000
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
"""Characters of one stop string: each is looked for in every piece of an answer."""
MAX_BIASES = 65536

Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Token = Annotated[Int, Field(ge=0, le=MAX_INT)]
Limit = Annotated[Int, Field(ge=LEAST_MAX_TOKENS, le=MAX_INT)]
StopString = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Breaker = Annotated[Text, Field(min_length=1, max_length=MAX_BREAKER_LENGTH)]


def _error(words: str) -> WrapValidator:
    """Returns one sentence in the place of one for each member of a union."""

    def validate(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("shape", f"Input should be {words}") from None

    return WrapValidator(validate)


def _within(name: str) -> Any:
    """Returns the range of one of the engine's parameters."""
    return Field(ge=RANGES[name].least, le=RANGES[name].most)


def _no_zero(limit: int) -> int:
    if limit == 0:
        raise PydanticCustomError("limit", "Input should be at least 1, or -1 for no limit")
    return limit


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_messages(messages: object) -> object:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


Prompt = Annotated[
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[Token], Field(min_length=1)]
    | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)],
    _error(f"a string, a list of token ids, or a list of 1 to {MAX_PROMPTS} of either, none of them empty"),
]
Stop = Annotated[
    StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)],
    _error(f"a string of 1 to {MAX_STOP_LENGTH} characters, or a list of at most {MAX_STOPS} of these"),
]
Samplers = Annotated[Text | Annotated[list[Text], Field(max_length=64)], _error("a list of names, or names between ;")]


class Body(BaseModel):
    """A JSON object whose unknown fields are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


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
    """What a stream holds beside the answer."""

    include_usage: Flag | None = None


class TemplateOptions(Body):
    """How messages become a prompt."""

    add_generation_prompt: Flag | None = None
    """Ends the prompt where the answer begins; null is true, unless ``continue_final_message``."""
    continue_final_message: Flag | None = None
    """Leaves the last message open, to be continued."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template."""


class SamplingBody(Body):
    """What chat and text completions have in common. null is the same as not there."""

    model: Text | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[Int, Field(ge=LEAST_SEED, le=LARGEST_SEED)] | None = None
    """Choice i draws with seed + i; null and -1 are a random one, which ``timings`` tells."""
    stop: Stop | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOPS)] | None = None
    min_tokens: Annotated[Int, Field(ge=0, le=MAX_INT)] | None = None
    ignore_eos: Flag | None = None
    temperature: Annotated[Number, _within("temperature")] | None = None
    """0 takes the most likely token."""
    top_k: Annotated[Int, Field(ge=-1, le=MAX_INT)] | None = None
    """-1 and 0 are off."""
    top_p: Annotated[Number, _within("top_p")] | None = None
    """0 takes the most likely token; 1 is off."""
    min_p: Annotated[Number, _within("min_p")] | None = None
    typical_p: Annotated[Number, _within("typical_p")] | None = Field(
        None, validation_alias=AliasChoices("typical_p", "typ_p")
    )
    """0 takes the most likely token; 1 is off."""
    presence_penalty: Annotated[Number, _within("presence_penalty")] | None = None
    frequency_penalty: Annotated[Number, _within("frequency_penalty")] | None = None
    repetition_penalty: Annotated[Number, _within("repetition_penalty")] | None = Field(
        None, validation_alias=AliasChoices("repetition_penalty", "repeat_penalty")
    )
    repeat_last_n: Annotated[Int, Field(ge=-1, le=MAX_INT)] | None = None
    """Tokens that the three penalties look back on; -1 is all."""
    xtc_probability: Annotated[Number, _within("xtc_probability")] | None = None
    xtc_threshold: Annotated[Number, _within("xtc_threshold")] | None = None
    dry_multiplier: Annotated[Number, _within("dry_multiplier")] | None = None
    dry_base: Annotated[Number, _within("dry_base")] | None = None
    dry_allowed_length: Annotated[Int, Field(ge=1, le=MAX_INT)] | None = None
    dry_penalty_last_n: Annotated[Int, Field(ge=-1, le=MAX_INT)] | None = None
    """-1 is all."""
    dry_sequence_breakers: Annotated[list[Breaker], Field(max_length=MAX_BREAKERS)] | None = None
    samplers: Samplers | None = None
    """The stages of sampling in their order; one that is not named is off."""
    logit_bias: Annotated[dict[str, Number], Field(max_length=MAX_BIASES)] | None = None
    """By token id, as a string."""
    cache_prompt: Flag | None = None
    timings_per_token: Flag | None = None
    # From here on: ignored or refused fields, see ``parameter_table``.
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    json_schema: Any = None
    response_format: Any = None
    adapters: Any = None
    lora: Any = None
    include_stop_str_in_output: Any = None
    skip_special_tokens: Any = None


class ChatCompletionBody(SamplingBody, TemplateOptions):
    """``POST /v1/chat/completions``"""

    messages: Messages
    max_completion_tokens: Annotated[Limit, AfterValidator(_no_zero)] | None = None
    """null, -1 and -2: to the end of the text or of the context."""
    max_tokens: Annotated[Limit, AfterValidator(_no_zero)] | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "n_predict")
    )
    """Counts only where ``max_completion_tokens`` is not given."""
    logprobs: Flag | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    # From here on: ignored or refused fields, see ``parameter_table``.
    reasoning_effort: Any = None
    verbosity: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None
    chat_template: Any = None


class CompletionBody(SamplingBody):
    """``POST /v1/completions``"""

    prompt: Prompt
    max_tokens: Limit | None = Field(None, validation_alias=AliasChoices("max_tokens", "n_predict"))
    """null, -1 and -2: to the end of the text or of the context. 0: nothing, which with ``echo`` leaves the prompt."""
    best_of: Annotated[Int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: Flag | None = None
    suffix: Text | None = None
    """Appended to each choice as it is; nothing is filled in."""
    logprobs: Annotated[Int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class EmbeddingBody(Body):
    """``POST /v1/embeddings``"""

    model: Text | None = None
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of little-endian float32."""
    dimensions: Annotated[Int, Field(ge=1, le=MAX_INT)] | None = None
    """Only what the model has."""
    pooling: Literal["mean", "last"] | None = None
    user: Any = None


class TokenizeBody(TemplateOptions):
    """``POST /tokenize``, as llama.cpp (``content``) and vLLM (``prompt``, ``messages``) have it."""

    model: Text | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special: Flag | None = None
    add_special_tokens: Flag | None = None
    """Put BOS in front where the tokenizer does so; null is yes for ``prompt`` and no for ``content``."""
    parse_special: Flag | None = None
    """Whether text that spells a control token is one; null is true."""
    with_pieces: Flag | None = None
    """Tell each token's text."""


class DetokenizeBody(Body):
    """``POST /detokenize``"""

    model: Text | None = None
    tokens: list[Token]


class ApplyTemplateBody(TemplateOptions):
    """``POST /apply-template``"""

    model: Text | None = None
    messages: Messages


BodyType = TypeVar("BodyType", bound=Body)


def parse(kind: type[BodyType], data: bytes) -> BodyType:
    """Returns a body from JSON. Raises RequestError about the first error in it."""
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
            # the rest of a key that somebody made up tells nothing, and it may be long
            name = step if re.fullmatch(r"[\w.-]{1,64}", step) else repr(step[:32])
            path += f".{name}" if path else name
    return path


def _lowered(words: str) -> str:
    return words[:1].lower() + words[1:]
