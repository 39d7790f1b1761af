"""Bodies and answers of OpenAI's Responses API, without stored state."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mistralrs.api.schemas.body import Body
from mistralrs.api.schemas.field_types import Flag, Int, Limit, Stop, Text, no_zero
from mistralrs.api.schemas.request_bodies import MAX_MESSAGES, MAX_TOP_LOGPROBS
from mistralrs.api.schemas.response_bodies import CachedTokens, DrawnToken, Part, ReasoningTokens
from mistralrs.api.schemas.translated.translated_bodies import TranslatedSampling


def _as_parts(content: object) -> object:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _as_items(items: object) -> object:
    return [{"role": "user", "content": items}] if isinstance(items, str) else items


class InputPart(Body):
    """A piece of an item. Only ``input_text``, ``output_text``, ``reasoning_text``, ``refusal`` and ``text`` are
    served."""

    type: Text
    text: Text | None = None
    refusal: Text | None = None
    annotations: Any = None
    logprobs: Any = None


Parts = Annotated[
    list[InputPart] | None, BeforeValidator(_as_parts, json_schema_input_type=Text | list[InputPart] | None)
]


class InputItem(Body):
    """A message, ``function_call``, ``function_call_output`` or ``reasoning``; items of answers may be sent back."""

    type: Text | None = None
    """null: a message."""
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts = None
    call_id: Text | None = None
    name: Text | None = None
    arguments: Text | None = None
    """JSON, as the model wrote it."""
    output: Parts = None
    summary: Any = None
    id: Any = None
    status: Any = None
    phase: Any = None


Items = Annotated[
    list[InputItem],
    BeforeValidator(_as_items, json_schema_input_type=Text | list[InputItem]),
    Field(min_length=1, max_length=MAX_MESSAGES),
]


class FunctionTool(Body):
    """A tool; only functions are served."""

    type: Text
    name: Text | None = None
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class TextOptions(Body):
    """The form of the answer's text."""

    format: dict[str, Any] | None = None
    """Of type ``text``, ``json_object`` or ``json_schema`` (with ``name``, ``schema``, ``strict``)."""
    verbosity: Text | None = None


class ReasoningOptions(Body):
    """The model's thinking, which answers show whole."""

    effort: Text | None = None


class ResponsesBody(TranslatedSampling):
    """``POST /v1/responses``. null is the same as not there."""

    input: Items
    instructions: Text | None = None
    """A system message before all others."""
    max_output_tokens: Annotated[Limit, AfterValidator(no_zero)] | None = None
    """Thinking included; null, -1 and -2: to the end of the text or of the context."""
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Text | dict[str, Any] | None = None
    parallel_tool_calls: Flag | None = None
    reasoning: ReasoningOptions | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[Text] | None = None
    """``message.output_text.logprobs``: the answer has log-probabilities."""
    truncation: Literal["auto", "disabled"] | None = None
    """auto: a prompt that is too long loses its beginning. null: as the server was started."""
    stop: Stop | None = None
    store: Flag | None = None
    """Answers are never kept; true is named as ignored."""
    # From here on: ignored or refused fields, see ``parameter_table``.
    stream_options: Any = None
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None
    metadata: Any = None
    service_tier: Any = None
    max_tool_calls: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    context_management: Any = None
    background: Any = None
    prompt: Any = None


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Part):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[DrawnToken]
    """Empty unless ``include`` asks for them."""


class ReasoningText(Part):
    type: Literal["reasoning_text"]
    text: str


class MessageItem(Part):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputText]


class ReasoningItem(Part):
    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningText]


class FunctionCallItem(Part):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    """``function_call_output`` repeats it."""
    name: str
    arguments: str
    """JSON."""


class IncompleteDetails(Part):
    reason: Literal["max_output_tokens"]


class ResponseFault(Part):
    code: str | None
    message: str


class InputTokensDetails(CachedTokens):
    cache_write_tokens: Literal[0]
    """Nothing is counted for writing."""


class ResponseUsage(Part):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponsesAnswer(Part):
    """The answer to ``POST /v1/responses``"""

    id: str
    object: Literal["response"]
    created_at: int
    """Seconds since 1970."""
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    error: ResponseFault | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    adapter_generation: int | None = None
    """Absent where no adapter acts."""
    instructions: str | None
    max_output_tokens: int | None
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, Any]
    store: Literal[False]
    background: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    metadata: dict[str, Any]


class ResponseEvent(BaseModel):
    """An event of a streamed answer to ``POST /v1/responses``; its fields depend on ``type``, as in OpenAI's API."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Also the event's name: ``response.created``, ``response.output_text.delta``, ``response.completed``, ..."""
    sequence_number: int
    """From 0."""
