"""Turns the messages of a body into a conversation for the model's template: contents become text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mistralrs.api.schemas.request_bodies import ContentPart, MessageBody, TemplateOptions
from mistralrs.api.serving.chat_prompt import Conversation
from mistralrs.api.serving.engine_requests import THINKING
from mistralrs.api.serving.grammars.tool_choice import ToolUse
from mistralrs.api.serving.other_apis.message_fields import MessageFields
from mistralrs.errors import RequestError
from mistralrs.text.chat_template import FIELDS, ChatTemplate

PART_SEPARATOR = "\n"
"""The separator of a content's text parts: clients send paragraphs, files and quotes as parts of their own."""
MAX_EXTRAS = 16
"""The most kinds of fields beside role and content, and the most variables: each may cost a rendering."""
RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final", "continue_final_message", "chat_template"}
)
"""Names that a template's variables must not have."""
_KWARGS = "chat_template_kwargs"
_EFFORT = "reasoning_effort"


def conversation(
    messages: Sequence[MessageBody],
    options: TemplateOptions,
    template: ChatTemplate,
    *,
    tools: ToolUse | None = None,
    effort: str | None = None,
) -> Conversation:
    """Returns the conversation to render, with tools and a degree of thinking for the template's variables.

    Raises RequestError if it cannot be rendered, or the template does not show the tools.
    """
    given = options.chat_template_kwargs or {}
    _check_variables(given)
    continue_final = bool(options.continue_final_message)
    add_generation_prompt = (
        not continue_final if options.add_generation_prompt is None else options.add_generation_prompt
    )
    if continue_final and add_generation_prompt:
        raise RequestError(
            "add_generation_prompt and continue_final_message exclude each other", param="continue_final_message"
        )
    fields = MessageFields(template)
    plain = [fields.of(message, _text(message, f"messages[{place}]")) for place, message in enumerate(messages)]
    efforts = {name: value for name, value in _efforts(effort).items() if name not in given}
    variables = {**given, **efforts, **({} if tools is None else {"tools": tools.shown})}
    asked = Conversation(plain, add_generation_prompt, continue_final, variables, ())
    extras = sorted({key for message in plain for key in message} - {"role", "content", *fields.unasked})
    if len(extras) > MAX_EXTRAS:
        raise RequestError(f"the messages have more than {MAX_EXTRAS} kinds of fields", param="messages")
    paths = [*((FIELDS, key) for key in extras), *((_KWARGS, key) for key in given)]
    paths += [(_EFFORT, name) for name in efforts]
    paths += [] if tools is None else [("", "tools")]
    if not paths:
        return asked
    unused = [paths[place] for place in asked.prompt(template, paths=paths).unused]
    if tools is not None and ("", "tools") in unused:
        raise RequestError(
            f"this model's chat template does not show {tools.shown_field}, so the model would not know them",
            hint=f'leave {tools.shown_field} out, send "{tools.choice_field}": "none", or choose a model or a '
            "template (--chat-template) that shows them",
            code="unsupported_parameter",
            param=tools.shown_field,
        )
    names = [f"{where}.{name}" for where, name in unused if where != _EFFORT]
    if efforts and all((_EFFORT, name) in unused for name in efforts):
        names.append(_EFFORT)
    return replace(asked, unused=tuple(names))


def _efforts(effort: str | None) -> dict[str, object]:
    """Returns the variables that templates have for a degree of thinking."""
    if effort is None:
        return {}
    return {_EFFORT: effort, **({THINKING: False} if effort == "none" else {})}


def _check_variables(variables: Mapping[str, Any]) -> None:
    reserved = sorted(RESERVED & variables.keys())
    if reserved:
        raise RequestError(
            f"chat_template_kwargs cannot set {reserved[0]}", param=f"chat_template_kwargs.{reserved[0]}"
        )
    if len(variables) > MAX_EXTRAS:
        raise RequestError(f"chat_template_kwargs has more than {MAX_EXTRAS} variables", param="chat_template_kwargs")


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
