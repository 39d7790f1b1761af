"""The messages of answers to chats, whole and in additions, declared for the documentation of the interface."""

from __future__ import annotations

from typing import Literal

from mistralrs.api.schemas.body import Part


class CalledFunction(Part):
    name: str
    arguments: str
    """JSON of an object; cut off where the answer was."""


class ToolCall(Part):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Part):
    role: Literal["assistant"]
    content: str | None
    """null if there are calls and no text."""
    refusal: None
    reasoning: str | None = None
    """The model's thinking; absent if there was none."""
    reasoning_content: str | None = None
    """The same, under the older name."""
    tool_calls: list[ToolCall] | None = None
    """Absent if there are none."""
    function_call: CalledFunction | None = None
    """The call, where the request has ``functions``."""


class FunctionDelta(Part):
    name: str | None = None
    """Present only in a call's first addition."""
    arguments: str
    """Further text of the JSON."""


class ToolCallDelta(Part):
    index: int
    """The call's place in the message, from 0."""
    id: str | None = None
    """Present only in a call's first addition, as is ``type``."""
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChunkDelta(Part):
    role: Literal["assistant"] | None = None
    """Present only in a choice's first chunk."""
    content: str | None = None
    """Absent in a choice's last chunk, and in one that adds something else."""
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The same, under the older name."""
    tool_calls: list[ToolCallDelta] | None = None
    function_call: FunctionDelta | None = None
