"""Reads bodies of OpenAI's Responses API as chats: items become messages. Nothing is kept between requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.request_bodies import ChatCompletionBody
from mistralrs.api.schemas.translated.responses_bodies import (
    FunctionTool,
    InputItem,
    InputPart,
    ResponsesBody,
    TextOptions,
)
from mistralrs.api.serving.other_apis.translated_chat import prepare_translated, shared_fields, translated
from mistralrs.api.serving.prepare import Prepared
from mistralrs.errors import RequestError

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel
    from mistralrs.api.serving.policy import Policy

LOGPROBS = "message.output_text.logprobs"
"""The member of ``include`` that asks for log-probabilities."""
NAMES = {
    r"messages\.tool_calls": "input.arguments",
    r"messages\.tool_call_id": "input.call_id",
    r"messages\.reasoning_content": "input.reasoning",
    r"messages.*": "input",
    r"max_completion_tokens": "max_output_tokens",
    r"reasoning_effort": "reasoning.effort",
    r"response_format(\.json_schema)?": "text.format",
    r"tools\[(\d+)\]\.function": r"tools[\1]",
    r"tool_choice\.(function|allowed_tools)": "tool_choice",
    r"verbosity": "text.verbosity",
}
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "reasoning_text": "text", "refusal": "refusal"}
"""The field with the text of a part, by the part's type."""


@dataclass(frozen=True, slots=True)
class PreparedResponse:
    """A request of the Responses API, whose answer repeats settings of its body."""

    prepared: Prepared
    body: ResponsesBody


def response_chat(body: ResponsesBody) -> ChatCompletionBody:
    """Returns the chat that a body is. Raises RequestError."""
    fields = {
        **shared_fields(body),
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "stop": body.stop,
        "logprobs": LOGPROBS in (body.include or ()),
        "top_logprobs": _top_logprobs(body),
        "response_format": _response_format(body.text),
        "verbosity": None if body.text is None else body.text.verbosity,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        **_tool_fields(body),
    }
    return translated(fields, NAMES)


def response_with_grammar(body: ResponsesBody) -> ChatCompletionBody | None:
    """Returns the chat that a body is, if it may have a grammar. Raises RequestError."""
    return response_chat(body) if body.text is not None or body.tools else None


def prepare_response(body: ResponsesBody, model: ServedModel, policy: Policy) -> PreparedResponse:
    """Returns the requests of a response. Raises RequestError and ContextLengthError."""
    ignored = (*parameter_table.unserved("responses", body), *_unread(body))
    if body.truncation is not None:
        policy = replace(policy, truncate=body.truncation == "auto")
    return PreparedResponse(prepare_translated(response_chat(body), ignored, model, policy, names=NAMES), body)


def _unread(body: ResponsesBody) -> Iterator[str]:
    """Yields names of what is given within the fields and changes nothing."""
    if body.store:
        yield "store"
    for path, part in (("text", body.text), ("reasoning", body.reasoning)):
        yield from parameter_table.unknown_within(path, part)
    for tool in body.tools or ():
        yield from parameter_table.unknown_within("tools", tool)
    for item in body.input:
        yield from parameter_table.unknown_within("input", item)
        for part in (*(item.content or ()), *(item.output or ())):
            yield from parameter_table.unknown_within("input.content", part)
    for name in body.include or ():
        if name != LOGPROBS:
            yield f"include.{name}"


def _top_logprobs(body: ResponsesBody) -> int | None:
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise RequestError(f"top_logprobs needs {LOGPROBS} in include", param="top_logprobs")
    return body.top_logprobs


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    """Returns the messages of a body. Neighbouring items of an assistant are one message where they make one turn."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    for place, item in enumerate(body.input):
        _add(item, messages, f"input[{place}]")
    for message in messages:
        if message["role"] == "assistant" and not message.get("tool_calls") and message.get("content") is None:
            message["content"] = ""
    return messages


def _add(item: InputItem, messages: list[dict[str, Any]], path: str) -> None:
    if item.type in (None, "message"):
        if item.role is None:
            raise RequestError(f"{path}.role is required", param=f"{path}.role")
        content = _parts(item.content, f"{path}.content")
        if item.role == "assistant":
            _turn(messages, taken=("content", "tool_calls"))["content"] = content
        else:
            messages.append({"role": item.role, "content": content})
    elif item.type == "reasoning":
        thought = "".join(part["text"] for part in _parts(item.content or [], f"{path}.content"))
        if thought:
            _turn(messages, taken=("content", "tool_calls", "reasoning_content"))["reasoning_content"] = thought
    elif item.type == "function_call":
        function = {"name": _required(item, "name", path), "arguments": _required(item, "arguments", path)}
        call = {"id": _required(item, "call_id", path), "type": "function", "function": function}
        _turn(messages, taken=()).setdefault("tool_calls", []).append(call)
    elif item.type == "function_call_output":
        output = _parts(item.output, f"{path}.output")
        messages.append({"role": "tool", "tool_call_id": _required(item, "call_id", path), "content": output})
    else:
        raise RequestError(
            f"{path} is of type {item.type[:64]!r}; this server takes message, function_call, function_call_output and"
            " reasoning",
            hint="it keeps no items, so that none can be referred to" if item.type == "item_reference" else None,
            code="unsupported_item",
            param=path,
        )


def _turn(messages: list[dict[str, Any]], *, taken: Sequence[str]) -> dict[str, Any]:
    """Returns the assistant's message that an item belongs to: a new one if the last has one of the fields ``taken``
    already, or is not the assistant's."""
    if messages and messages[-1]["role"] == "assistant" and not any(name in messages[-1] for name in taken):
        return messages[-1]
    messages.append({"role": "assistant"})
    return messages[-1]


def _required(item: InputItem, name: str, path: str) -> str:
    value: str | None = getattr(item, name)
    if value is None:
        raise RequestError(f"{path}.{name} is required", param=f"{path}.{name}")
    return value


def _parts(parts: Sequence[InputPart] | None, path: str) -> list[dict[str, str]]:
    """Returns parts as a chat has them."""
    if parts is None:
        raise RequestError(f"{path} is required", param=path)
    texts = []
    for place, part in enumerate(parts):
        field = _TEXTS.get(part.type)
        if field is None:
            raise RequestError(
                f"{path}[{place}] is of type {part.type[:64]!r}; this model takes text only",
                code="unsupported_content_part",
                param=f"{path}[{place}]",
            )
        text: str | None = getattr(part, field)
        if text is None:
            raise RequestError(f"{path}[{place}].{field} is required", param=f"{path}[{place}].{field}")
        texts.append({"type": "text", "text": text})
    return texts


def _response_format(text: TextOptions | None) -> dict[str, Any] | None:
    """Returns the format as a chat has it, whose schemas are one level deeper."""
    given = None if text is None else text.format
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


def _tool_fields(body: ResponsesBody) -> dict[str, object]:
    """Returns the fields of a chat about tools."""
    tools = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "allowed_tools":
            choice = {"type": kind, "allowed_tools": _allowed(choice)}
        elif kind == "function":
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        else:
            raise RequestError(
                f"tool_choice is of type {str(kind)[:64]!r}; this server takes function and allowed_tools",
                code="unsupported_parameter",
                param="tool_choice",
            )
    if not tools and choice in ("auto", "none"):
        choice = None
    return {"tools": tools or None, "tool_choice": choice, "parallel_tool_calls": body.parallel_tool_calls}


def _allowed(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a chat's ``allowed_tools`` that has the names of the tools."""
    allowed = choice.get("tools")
    if not isinstance(allowed, list) or not all(isinstance(each, dict) for each in allowed):
        raise RequestError("tool_choice.tools must be a list of tools", param="tool_choice.tools")
    tools = [{"type": each.get("type"), "function": {"name": each.get("name")}} for each in allowed]
    return {"mode": choice.get("mode") or "auto", "tools": tools}


def _tool(tool: FunctionTool, path: str) -> dict[str, Any]:
    if tool.type != "function":
        raise RequestError(
            f"{path} is of type {tool.type[:64]!r}; this server takes functions only, which the client calls",
            code="unsupported_parameter",
            param=path,
        )
    if tool.name is None:
        raise RequestError(f"{path}.name is required", param=f"{path}.name")
    fields = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {name: value for name, value in fields.items() if value is not None}}
