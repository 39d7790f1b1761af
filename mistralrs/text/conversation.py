"""Rewrites a conversation that a chat template refuses into one that it takes, without losing a word of it.

Many templates know no system role, or want user and assistant to take turns. Knows roles and contents; knows neither
Jinja nor tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mistralrs.errors import RequestError

Message = dict[str, Any]
Render = Callable[[Sequence[Message]], str]

_SEPARATOR = "\n\n"
_MERGED_ROLES = ("system", "user", "assistant")
_MAX_PROBES = 64
"""System messages for which a prompt is rendered again. A template treats one like the next."""


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
    seen = [messages]
    yield messages, False
    for num_kept, system_moved in ((len(messages), False), (1, True), (0, True)):
        rewriting = _merged([*messages[:num_kept], *map(_as_user, messages[num_kept:])])
        if rewriting not in seen:
            seen.append(rewriting)
            yield rewriting, system_moved


def _as_user(message: Message) -> Message:
    return {**message, "role": "user"} if message.get("role") == "system" else message


def _merged(messages: list[Message]) -> list[Message]:
    """Neighbours of one role and name joined. Messages that carry more, such as tool calls, are left alone."""
    merged: list[Message] = []
    for speaker, turn in itertools.groupby(messages, _speaker):
        same = list(turn)
        if speaker is not None and len(same) > 1:
            same = [{**same[0], "content": _joined([message["content"] for message in same])}]
        merged += same
    return merged


def _speaker(message: Message) -> tuple[object, object] | None:
    """Who says a message; None if it carries more than what is said."""
    return (message["role"], message.get("name")) if _plain(message) else None


def _plain(message: Message) -> bool:
    return (
        {"role", "content"} <= message.keys() <= {"role", "content", "name"}
        and message["role"] in _MERGED_ROLES
        and isinstance(message["content"], str | list)
    )


def _joined(contents: Sequence[str | list[Any]]) -> str | list[Any]:
    """Contents as one: texts, or lists of parts."""
    filled = [content for content in contents if content]
    texts = [content for content in filled if isinstance(content, str)]
    if len(texts) == len(filled):
        return _SEPARATOR.join(texts)
    parts = _parts(filled[0])
    for content in filled[1:]:
        parts += [*_parts(_SEPARATOR), *_parts(content)]
    return parts


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _leaves_out_system(render: Render, messages: list[Message], text: str) -> bool:
    """Whether the prompt would be the same with another system message in place of one that says something."""
    for place in itertools.islice(_unseen_system(messages, text), _MAX_PROBES):
        message = messages[place]
        other = [*messages[:place], {**message, "content": message["content"] + "x"}, *messages[place + 1 :]]
        try:
            if render(other) == text:
                return True
        except RequestError:
            continue  # it looks at the system message, then
    return False


def _unseen_system(messages: list[Message], text: str) -> Iterator[int]:
    """The places of system messages that the text does not hold as they are."""
    position = 0  # where the last one was found: the next is most likely behind it
    for place, message in enumerate(messages):
        content = message.get("content")
        if message.get("role") != "system" or not isinstance(content, str):
            continue
        shown = content.strip()
        found = text.find(shown, position)
        if found < 0:
            found = text.find(shown)
        if found < 0:
            yield place
        else:
            position = found
