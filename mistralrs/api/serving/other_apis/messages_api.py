"""Reads bodies of Anthropic's Messages API as chats: blocks become messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.request_bodies import ChatCompletionBody
from mistralrs.api.schemas.translated.messages_bodies import (
    Block,
    CountTokensBody,
    MessagesBody,
    MessagesPrompt,
    MessagesTool,
    MessagesToolChoice,
    MessagesTurn,
    OutputConfig,
)
from mistralrs.api.serving.grammars.thinking_budget import thinking_marks
from mistralrs.api.serving.other_apis.translated_chat import prepare_translated, shared_fields, translated
from mistralrs.api.serving.prepare import Prepared
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel
    from mistralrs.api.serving.policy import Policy

NAMES = {
    r"messages\.tool_calls": "messages.tool_use",
    r"messages\.tool_call_id": "messages.tool_use_id",
    r"messages\.reasoning_content": "messages.thinking",
    r"messages.*": "messages",
    r"chat_template_kwargs\.enable_thinking": "thinking",
    r"thinking_token_budget": "thinking.budget_tokens",
    r"stop": "stop_sequences",
    r"response_format(\.json_schema)?": "output_config.format",
    r"reasoning_effort": "output_config.effort",
    r"parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    r"tools\[(\d+)\]\.function\.parameters": r"tools[\1].input_schema",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
    r"tool_choice\.function": "tool_choice",
}
_BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
"""Types of blocks by the role of their message."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class PreparedMessage:
    """A request of the Messages API."""

    prepared: Prepared
    body: MessagesBody


@dataclass(frozen=True, slots=True)
class CountedTokens:
    """The length of a prompt."""

    prepared: Prepared
    num_tokens: int


def message_chat(body: MessagesPrompt) -> ChatCompletionBody:
    """Returns the chat that a body is. Raises RequestError."""
    limits: dict[str, object] = {}
    if isinstance(body, MessagesBody):
        limits = {"max_tokens": body.max_tokens, "stop": body.stop_sequences}
    return translated({**_prompt_fields(body), **limits}, NAMES)


def message_with_grammar(body: MessagesPrompt) -> ChatCompletionBody | None:
    """Returns the chat that a body is, if it may have a grammar. Raises RequestError."""
    return message_chat(body) if body.output_config is not None or body.tools else None


def prepare_message(body: MessagesBody, model: ServedModel, policy: Policy) -> PreparedMessage:
    """Returns the requests of a message. Raises RequestError and ContextLengthError."""
    ignored = (*parameter_table.unserved("messages", body), *_unread(body))
    return PreparedMessage(_prepared(body, ignored, model, policy), body)


def count_tokens(body: CountTokensBody, model: ServedModel, policy: Policy) -> CountedTokens:
    """Returns the tokens of a prompt. Raises RequestError, and ContextLengthError for one that does not fit."""
    ignored = (*parameter_table.unserved("count_tokens", body), *_unread(body))
    prepared = _prepared(body, ignored, model, policy)
    return CountedTokens(prepared, len(prepared.requests[0].prompt) + prepared.truncated_tokens)


def _prepared(body: MessagesPrompt, ignored: tuple[str, ...], model: ServedModel, policy: Policy) -> Prepared:
    """Returns the requests of a body. Clients send a budget of thinking to every model: one that cannot think ignores
    it by name."""
    chat = message_chat(body)
    if chat.thinking_token_budget is not None and thinking_marks(model.responses) is None:
        chat = chat.model_copy(update={"thinking_token_budget": None})
        ignored = (*ignored, "thinking.budget_tokens")
    return prepare_translated(chat, ignored, model, policy, names=NAMES)


def _unread(body: MessagesPrompt) -> Iterator[str]:
    """Yields names of what is given within the fields and changes nothing."""
    for path, part in (
        ("tool_choice", body.tool_choice),
        ("thinking", body.thinking),
        ("output_config", body.output_config),
    ):
        yield from parameter_table.unknown_within(path, part)
    for tool in body.tools or ():
        yield from parameter_table.unknown_within("tools", tool)
        yield from _cached("tools", tool)
    yield from _unread_blocks(body.system or (), "system")
    for message in body.messages:
        yield from parameter_table.unknown_within("messages", message)
        yield from _unread_blocks(message.content, "messages")


def _unread_blocks(blocks: Iterable[Block], path: str) -> Iterator[str]:
    for block in blocks:
        yield from parameter_table.unknown_within(path, block)
        yield from _cached(path, block)
        if block.is_error:
            yield f"{path}.is_error"
        if block.type == "redacted_thinking":
            yield f"{path}.redacted_thinking"
        if block.content:
            yield from _unread_blocks(block.content, path)


def _cached(path: str, part: Block | MessagesTool) -> Iterator[str]:
    if part.cache_control is not None:
        yield f"{path}.cache_control"


def _prompt_fields(body: MessagesPrompt) -> dict[str, object]:
    """Returns a chat's fields for those that make a prompt, and the shared ones."""
    tools = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(body.tools or ())]
    config = body.output_config
    variables = dict(body.chat_template_kwargs or {})
    if body.thinking is not None and body.thinking.type != "adaptive":
        variables["enable_thinking"] = body.thinking.type == "enabled"
    messages = _messages(body)
    return {
        **shared_fields(body),
        "messages": messages,
        "continue_final_message": True if _is_begun(messages[-1]) else None,
        "chat_template_kwargs": variables or None,
        "thinking_token_budget": None if body.thinking is None else body.thinking.budget_tokens,
        "reasoning_effort": None if config is None else config.effort,
        "response_format": _response_format(config),
        "tools": tools or None,
        **_choice_fields(body.tool_choice, has_tools=bool(tools)),
    }


def _is_begun(message: Mapping[str, Any]) -> bool:
    """Returns whether the model is to continue a message."""
    return message["role"] == "assistant" and bool(message["content"]) and "tool_calls" not in message


def _messages(body: MessagesPrompt) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _texts(body.system, "system")})
    for place, message in enumerate(body.messages):
        path = f"messages[{place}].content"
        _check_types(message.content, _BLOCKS[message.role], path)
        if message.role == "assistant":
            messages.append(_assistant(message, path))
        else:
            messages += _others(message, path)
    return messages


def _check_types(blocks: Sequence[Block], served: Sequence[str], path: str) -> None:
    for place, block in enumerate(blocks):
        if block.type not in served:
            raise RequestError(
                f"{path}[{place}] is of type {block.type[:64]!r}; served here are {', '.join(served)}",
                code="unsupported_content_part",
                param=f"{path}[{place}]",
            )


def _assistant(message: MessagesTurn, path: str) -> dict[str, Any]:
    """Returns a turn of the assistant: its text, its thoughts and its calls."""
    parts, thoughts, calls = [], [], []
    for place, block in enumerate(message.content):
        at = f"{path}[{place}]"
        if block.type == "text":
            parts.append({"type": "text", "text": _required(block, "text", at)})
        elif block.type == "thinking":
            thoughts.append(_required(block, "thinking", at))
        elif block.type == "tool_use":
            arguments = json.dumps(block.input or {}, ensure_ascii=False)
            function = {"name": _required(block, "name", at), "arguments": arguments}
            calls.append({"id": _required(block, "id", at), "type": "function", "function": function})
    turn: dict[str, Any] = {"role": "assistant", "content": parts}
    if thoughts:
        turn["reasoning_content"] = "\n".join(thoughts)
    if calls:
        turn["tool_calls"] = calls
    return turn


def _others(message: MessagesTurn, path: str) -> Iterator[dict[str, Any]]:
    """Yields a turn of the user or the system; each result of a tool is a message of its own."""
    parts: list[dict[str, str]] = []
    for place, block in enumerate(message.content):
        at = f"{path}[{place}]"
        if block.type == "text":
            parts.append({"type": "text", "text": _required(block, "text", at)})
            continue
        if parts:
            yield {"role": message.role, "content": parts}
            parts = []
        content = _texts(block.content or (), f"{at}.content")
        yield {"role": "tool", "tool_call_id": _required(block, "tool_use_id", at), "content": content}
    if parts or not message.content:
        yield {"role": message.role, "content": parts}


def _texts(blocks: Sequence[Block], path: str) -> list[dict[str, str]]:
    _check_types(blocks, ("text",), path)
    return [
        {"type": "text", "text": _required(block, "text", f"{path}[{place}]")} for place, block in enumerate(blocks)
    ]


def _required(block: Block, name: str, path: str) -> str:
    value: str | None = getattr(block, name)
    if value is None:
        raise RequestError(f"{path}.{name} is required", param=f"{path}.{name}")
    return value


def _response_format(config: OutputConfig | None) -> dict[str, Any] | None:
    given = None if config is None else config.format
    if given is None:
        return None
    if given.get("type") != "json_schema":
        raise RequestError(
            "output_config.format is to be of type json_schema",
            code="unsupported_parameter",
            param="output_config.format",
        )
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": given.get("schema"), "strict": True}}


def _choice_fields(choice: MessagesToolChoice | None, *, has_tools: bool) -> dict[str, object]:
    if choice is None:
        return {}
    parallel = False if choice.disable_parallel_tool_use else None
    if choice.type == "tool":
        if choice.name is None:
            raise RequestError("tool_choice.name is required", param="tool_choice.name")
        named = {"type": "function", "function": {"name": choice.name}}
        return {"tool_choice": named, "parallel_tool_calls": parallel}
    if not has_tools and choice.type != "any":
        return {}
    return {"tool_choice": _CHOICES[choice.type], "parallel_tool_calls": parallel}


def _tool(tool: MessagesTool, path: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise RequestError(
            f"{path} is of type {tool.type[:64]!r}; this server takes custom tools only, which the client runs",
            code="unsupported_parameter",
            param=path,
        )
    fields = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {name: value for name, value in fields.items() if value is not None}}
