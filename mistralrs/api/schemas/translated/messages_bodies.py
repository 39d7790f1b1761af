"""Bodies and answers of Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mistralrs.api.schemas.body import Body
from mistralrs.api.schemas.field_types import MAX_STOPS, Flag, Int, StopString, Text
from mistralrs.api.schemas.request_bodies import MAX_MESSAGES
from mistralrs.api.schemas.response_bodies import Part
from mistralrs.api.schemas.sentinels import MAX_INT
from mistralrs.api.schemas.translated.translated_bodies import TranslatedBody, TranslatedSampling


def _as_blocks(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Block(Body):
    """A piece of a message: ``text``, ``thinking``, ``redacted_thinking``, ``tool_use`` or ``tool_result``. Images and
    documents are refused."""

    type: Text
    text: Text | None = None
    thinking: Text | None = None
    id: Text | None = None
    name: Text | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Text | None = None
    content: Blocks | None = None
    is_error: Flag | None = None
    signature: Any = None
    data: Any = None
    citations: Any = None
    cache_control: Any = None


Blocks = Annotated[list[Block], BeforeValidator(_as_blocks, json_schema_input_type=Text | list[Block])]
Block.model_rebuild()


class MessagesTurn(Body):
    """One turn. A last one of the assistant is continued."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class MessagesTool(Body):
    """A tool of the client; those that Anthropic runs are refused."""

    type: Text | None = None
    name: Text
    description: Text | None = None
    input_schema: dict[str, Any] | None = None
    strict: Flag | None = None
    cache_control: Any = None


class MessagesToolChoice(Body):
    """Whether tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    """The tool, for ``tool``."""
    disable_parallel_tool_use: Flag | None = None


class ThinkingBody(Body):
    """Whether the model thinks first; ``adaptive`` leaves it to the template."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Int, Field(ge=1, le=MAX_INT)] | None = None


class OutputConfig(Body):
    """The form of the answer."""

    effort: Text | None = None
    format: dict[str, Any] | None = None
    """``{"type": "json_schema", "schema": {...}}``"""


class MessagesPrompt(TranslatedBody):
    """The fields that make a prompt."""

    messages: Annotated[list[MessagesTurn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Blocks | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: ThinkingBody | None = None
    output_config: OutputConfig | None = None
    # Ignored, see ``parameter_table``.
    cache_control: Any = None


class CountTokensBody(MessagesPrompt):
    """``POST /v1/messages/count_tokens``"""


class MessagesBody(MessagesPrompt, TranslatedSampling):
    """``POST /v1/messages``"""

    max_tokens: Annotated[Int, Field(ge=1, le=MAX_INT)]
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    # From here on: ignored or refused fields, see ``parameter_table``.
    metadata: Any = None
    service_tier: Any = None
    inference_geo: Any = None
    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None


class TextBlock(Part):
    type: Literal["text"]
    text: str


class ThinkingBlock(Part):
    type: Literal["thinking"]
    thinking: str
    signature: str
    """Empty: thoughts are not signed."""


class ToolUseBlock(Part):
    type: Literal["tool_use"]
    id: str
    """``tool_result`` repeats it."""
    name: str
    input: dict[str, Any]
    """Where ``max_tokens`` cut the call: as far as it was whole."""


class MessagesUsage(Part):
    input_tokens: int
    """Prompt tokens without those that were cached."""
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    """Prompt tokens whose KV came from earlier requests."""
    output_tokens: int


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessagesAnswer(Part):
    """The answer to ``POST /v1/messages``"""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None
    """null in the first event of a stream."""
    stop_sequence: str | None
    """The one that ended the answer."""
    usage: MessagesUsage
    adapter_generation: int | None = None
    """Absent where no adapter acts."""


class TokenCount(Part):
    """The answer to ``POST /v1/messages/count_tokens``"""

    input_tokens: int


class MessagesEvent(BaseModel):
    """An event of a streamed answer to ``POST /v1/messages``; its fields depend on ``type``, as in Anthropic's API."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Also the event's name: ``message_start``, ``content_block_delta``, ``ping``, ..."""


class MessagesFault(Part):
    type: str
    message: str


class MessagesError(Part):
    """Any answer of these addresses with a status from 400 on, and the last event of a stream that failed."""

    type: Literal["error"]
    error: MessagesFault
