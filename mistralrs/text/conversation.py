"""Rewrites a conversation that a chat template refuses into one that it takes, without losing a word of it.

Many templates know no system role, or want user and assistant to take turns. Knows roles and contents; knows neither
Jinja nor tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mistralrs.errors import RequestError

Message = dict[str, Any]
Render = Callable[[Sequence[Message]], str]

_SEPARATOR = "\n\n"
_MERGED_ROLES = ("system", "user", "assistant")


class TemplateRefusalError(RequestError):
    """The template itself refuses the messages, in its own words."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation's prompt."""

    text: str
    system_moved: bool
    """A system message stands in a user's turn, since the template has no other place for it."""


def render_conversation(render: Render, messages: Sequence[Mapping[str, object]]) -> Rendered:
    """Renders the messages as they are or, where the template refuses these, the first rewriting that it takes:

    1. consecutive messages of the same role become one;
    2. system messages after the first message go in front of the user's turn that follows;
    3. so do all system messages, also when the template would silently leave one out.

    The role ``developer`` is ``system`` under another name. Raises what ``render`` raises; when every rewriting is
    refused, the first TemplateRefusalError, which is about the messages as they are.
    """
    given = [
        {**message, "role": "system"} if message.get("role") == "developer" else {**message} for message in messages
    ]
    first_refusal: RequestError | None = None
    for candidate, system_moved in _rewritings(given):
        try:
            text = render(candidate)
        except TemplateRefusalError as error:
            first_refusal = first_refusal or error
            continue
        if not _leaves_out_system(render, candidate, text):
            return Rendered(text, system_moved)
        first_refusal = first_refusal or RequestError(
            "the chat template leaves out the system message", hint="leave it out yourself", param="messages"
        )
    assert first_refusal is not None  # there is always one rewriting
    raise first_refusal


def _rewritings(messages: list[Message]) -> Iterator[tuple[list[Message], bool]]:
    """Each rewriting once, the mildest first, with whether a system message became part of a user's turn."""
    later = _merged([*messages[:1], *map(_as_user, messages[1:])])
    everything = _merged(list(map(_as_user, messages)))
    seen: list[list[Message]] = []
    for rewriting, system_moved in ((messages, False), (_merged(messages), False), (later, True), (everything, True)):
        if rewriting not in seen:
            seen.append(rewriting)
            yield rewriting, system_moved


def _as_user(message: Message) -> Message:
    return {**message, "role": "user"} if message.get("role") == "system" else message


def _merged(messages: list[Message]) -> list[Message]:
    """Neighbours of one role joined. Messages that carry more than a content, such as tool calls, are left alone."""
    merged: list[Message] = []
    for message in messages:
        if merged and _plain(message) and _plain(merged[-1]) and message["role"] == merged[-1]["role"]:
            merged[-1] = {**message, "content": _joined(merged[-1]["content"], message["content"])}
        else:
            merged.append(message)
    return merged


def _plain(message: Message) -> bool:
    return (
        message.keys() == {"role", "content"}
        and message["role"] in _MERGED_ROLES
        and isinstance(message["content"], str | list)
    )


def _joined(first: str | list[Any], second: str | list[Any]) -> str | list[Any]:
    """Two contents as one: texts, or lists of parts."""
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return first + _SEPARATOR + second
    return [*_parts(first), *_parts(_SEPARATOR), *_parts(second)]


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _leaves_out_system(render: Render, messages: list[Message], text: str) -> bool:
    """Whether the prompt would be the same with another system message in place of one that says something."""
    for position, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") != "system" or not isinstance(content, str) or content.strip() in text:
            continue
        other = [*messages[:position], {**message, "content": content + "x"}, *messages[position + 1 :]]
        try:
            if render(other) == text:
                return True
        except RequestError:
            continue  # it looks at the system message, then
    return False
