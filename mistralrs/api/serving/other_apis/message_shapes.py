"""The message of a chat's choice, whole and in additions, in OpenAI's shapes.

Thinking has both names that clients read. Calls have the form ``tool_calls``, or the older ``function_call``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mistralrs.api.schemas.output_chunk import OutputChunk, ToolCallDelta
    from mistralrs.api.serving.answers.choice_parts import ChoiceParts, ToolCall


def whole_message(parts: ChoiceParts, *, legacy: bool) -> dict[str, object]:
    """Returns a choice's message. Its content is null if it has calls and no text."""
    content = parts.content or (None if parts.calls else "")
    message: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
    if parts.reasoning:
        message |= _reasoning(parts.reasoning)
    if parts.calls and legacy:
        message["function_call"] = _function(parts.calls[0])
    elif parts.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _function(call)} for call in parts.calls
        ]
    return message


def message_delta(chunk: OutputChunk, *, legacy: bool) -> dict[str, object]:
    """Returns a chunk's addition to its message. Id, type and name of a call are in its first addition only."""
    fields = {"role": chunk.role, "content": chunk.text}
    delta: dict[str, object] = {name: value for name, value in fields.items() if value is not None}
    if chunk.reasoning is not None:
        delta |= _reasoning(chunk.reasoning)
    if chunk.tool_calls and legacy:
        delta["function_call"] = _function_delta(chunk.tool_calls[0])
    elif chunk.tool_calls:
        delta["tool_calls"] = [_call_delta(call) for call in chunk.tool_calls]
    return delta


def end_name(reason: str | None, *, legacy: bool) -> str | None:
    """Returns the finish reason as clients read it."""
    return "function_call" if legacy and reason == "tool_calls" else reason


def _reasoning(text: str) -> dict[str, object]:
    return {"reasoning": text, "reasoning_content": text}


def _function(call: ToolCall) -> dict[str, object]:
    return {"name": call.name, "arguments": call.arguments}


def _call_delta(call: ToolCallDelta) -> dict[str, object]:
    first: Mapping[str, object] = {} if call.id is None else {"id": call.id, "type": "function"}
    return {"index": call.index, **first, "function": _function_delta(call)}


def _function_delta(call: ToolCallDelta) -> dict[str, object]:
    name: Mapping[str, object] = {} if call.name is None else {"name": call.name}
    return {**name, "arguments": call.arguments}
