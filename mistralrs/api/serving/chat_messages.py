"""Turns the messages of a body into a conversation for the model's template: contents become text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from mistralrs.api.schemas.request_bodies import ContentPart, MessageBody, TemplateOptions
from mistralrs.api.serving.chat_prompt import Conversation
from mistralrs.errors import RequestError
from mistralrs.text.chat_template import FIELDS, ChatTemplate

PART_SEPARATOR = "\n"
"""The separator of a content's text parts: clients send paragraphs, files and quotes as parts of their own."""
MAX_EXTRAS = 16
"""The most kinds of fields beside role and content, and the most variables: each may cost a rendering."""
RESERVED = frozenset({"messages", "add_generation_prompt", "continue_final", "continue_final_message", "chat_template"})
"""Names that a template's variables must not have."""


def conversation(messages: Sequence[MessageBody], options: TemplateOptions, template: ChatTemplate) -> Conversation:
    """Returns the conversation to render. Raises RequestError if it cannot be rendered."""
    variables = options.chat_template_kwargs or {}
    _check_variables(variables)
    continue_final = bool(options.continue_final_message)
    add_generation_prompt = (
        not continue_final if options.add_generation_prompt is None else options.add_generation_prompt
    )
    if continue_final and add_generation_prompt:
        raise RequestError(
            "add_generation_prompt and continue_final_message exclude each other", param="continue_final_message"
        )
    plain = [_plain(message, f"messages[{place}]") for place, message in enumerate(messages)]
    asked = Conversation(plain, add_generation_prompt, continue_final, variables, ())
    extras = sorted({key for message in plain for key in message} - {"role", "content"})
    if len(extras) > MAX_EXTRAS:
        raise RequestError(f"the messages have more than {MAX_EXTRAS} kinds of fields", param="messages")
    paths = [*((FIELDS, key) for key in extras), *(("chat_template_kwargs", key) for key in variables)]
    if not paths:
        return asked
    unused = tuple(".".join(paths[place]) for place in asked.prompt(template, paths=paths).unused)
    return replace(asked, unused=unused)


def _check_variables(variables: Mapping[str, Any]) -> None:
    reserved = sorted(RESERVED & variables.keys())
    if reserved:
        raise RequestError(
            f"chat_template_kwargs cannot set {reserved[0]}", param=f"chat_template_kwargs.{reserved[0]}"
        )
    if len(variables) > MAX_EXTRAS:
        raise RequestError(f"chat_template_kwargs has more than {MAX_EXTRAS} variables", param="chat_template_kwargs")


def _plain(message: MessageBody, path: str) -> dict[str, object]:
    """Returns a message as templates expect it: a text, and the message's other fields."""
    plain: dict[str, object] = {"role": message.role, "content": _text(message, path)}
    for key, value in {
        "name": message.name,
        "tool_calls": [_call(call) for call in message.tool_calls or ()],
        "tool_call_id": message.tool_call_id,
        **(message.model_extra or {}),
    }.items():
        # a message that a client copied from an answer holds nulls and empty lists without a meaning
        if value is not None and value != []:
            plain[key] = value
    return plain


def _text(message: MessageBody, path: str) -> str:
    if message.content is None:
        extra = message.model_extra or {}
        if message.role == "assistant" and (message.tool_calls or extra.get("function_call") or extra.get("refusal")):
            return ""  # most templates cannot add null to a text
        raise RequestError(
            f"{path}.content is null; only an assistant's message with tool_calls may have no content",
            param=f"{path}.content",
        )
    return PART_SEPARATOR.join(
        _part_text(part, f"{path}.content[{place}]") for place, part in enumerate(message.content)
    )


def _part_text(part: ContentPart, path: str) -> str:
    if part.type != "text":
        raise RequestError(
            f"{path} is of type {part.type[:64]!r}; this model takes text parts only",
            code="unsupported_content_part",
            param=path,
        )
    if part.text is None:
        raise RequestError(f"{path}.text is required", param=f"{path}.text")
    return part.text


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tool call with its arguments as an object, which templates expect; the API has them as JSON text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = from_json(function["arguments"])  # this bounds the nesting, as for all JSON that is read
    except ValueError:
        return dict(call)  # a model wrote these arguments and they need not be JSON: the template gets the text
    if not isinstance(arguments, dict):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}
