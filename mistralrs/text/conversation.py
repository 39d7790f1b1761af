"""Rewrites a conversation that a chat template refuses into one that it accepts, without losing text.

Many templates do not support a system role, or require user and assistant to take turns, or accept a content only as a
list of parts.
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
"""Messages for each of which the prompt is rendered once more, at most. Templates treat all messages alike."""
_MIN_UNIQUE_LENGTH = 32
"""Characters from which on a content does not occur in a template by chance."""
_PYTHON_LIST = "[{'type': 'text'"
_CALLS = ("tool_calls", "function_call")


class TemplateRefusalError(RequestError):
    """The template refuses the messages; the message is the template's own."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation's prompt."""

    text: str
    system_moved: bool
    """Whether a system message was moved into a user's turn, because the template has no other place for it."""


def render_conversation(render: Render, messages: Sequence[Mapping[str, object]], markers: Iterator[str]) -> Rendered:
    """Renders the messages as they are or, if the template refuses them, the first rewriting that it accepts:

    1. consecutive messages of the same role become one;
    2. system messages after the first message go in front of the user's turn that follows;
    3. so do all system messages, also when the template would silently leave one out;
    4. each text becomes a list of one part, also when the template would silently leave out a text.

    The role ``developer`` is treated as ``system``. ``markers`` yields characters that are in no message and not in the
    template. Raises the errors of ``render``; if every rewriting is refused, the first error, which is about the
    messages as they are. A template may leave out an assistant's reasoning, and its text beside tool calls, since many
    do so on purpose.
    """
    given = [
        {**message, "role": "system"} if message.get("role") == "developer" else {**message} for message in messages
    ]
    first_error: RequestError | None = None
    for form in (given, [{**message, "content": _in_parts(message.get("content"))} for message in given]):
        if form == given and first_error is not None:
            break  # all contents were parts already
        try:
            rendered = _rendered(render, form, markers)
        except RequestError as error:
            first_error = first_error or error
            continue
        if form == given or not _shows_lists(rendered.text, given):
            return rendered
    assert first_error is not None
    raise first_error


def _rendered(render: Render, messages: list[Message], markers: Iterator[str]) -> Rendered:
    """The prompt by the first rewriting that the template accepts and renders without leaving out text."""
    first_error: RequestError | None = None
    for candidate, system_moved in _rewritings(messages):
        try:
            text = render(candidate)
        except TemplateRefusalError as error:
            first_error = first_error or error
            continue
        lost = _left_out(render, candidate, text, markers)
        if lost is None:
            return Rendered(text, system_moved)
        role = candidate[lost].get("role")
        if role != "system":  # rewriting would not help
            raise _leaves_out(f"a message of the role {str(role)[:64]!r}", "another one shows it: --chat-template")
        first_error = first_error or _leaves_out("the system message", "leave it out yourself")
    assert first_error is not None  # there is always one rewriting
    raise first_error


def _leaves_out(subject: str, hint: str) -> RequestError:
    return RequestError(f"the chat template leaves out {subject}", hint=hint, param="messages")


def _rewritings(messages: list[Message]) -> Iterator[tuple[list[Message], bool]]:
    """All distinct rewritings, the smallest change first, with whether a system message moved into a user's turn."""
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
    """The messages with neighbours of one role and name joined. Messages with other fields, such as tool calls,
    stay."""
    merged: list[Message] = []
    for merge_key, turn in itertools.groupby(messages, _merge_key):
        same = list(turn)
        if merge_key is not None and len(same) > 1:
            same = [{**same[0], "content": _joined([message["content"] for message in same])}]
        merged += same
    return merged


def _merge_key(message: Message) -> tuple[object, object] | None:
    """The role and name of a message that may be merged; None if it has other fields."""
    return (message["role"], message.get("name")) if _plain(message) else None


def _plain(message: Message) -> bool:
    return (
        {"role", "content"} <= message.keys() <= {"role", "content", "name"}
        and message["role"] in _MERGED_ROLES
        and isinstance(message["content"], str | list)
    )


def _joined(contents: Sequence[str | list[Any]]) -> str | list[Any]:
    """The contents joined to one: a text, or a list of parts if one of them is a list."""
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


def _in_parts(content: object) -> object:
    return _parts(content) if isinstance(content, str) else content


def _shows_lists(text: str, messages: list[Message]) -> bool:
    """Whether a template that expects texts wrote lists in Python's syntax."""
    return _PYTHON_LIST in text and not any(_PYTHON_LIST in _last_text(message.get("content")) for message in messages)


def _left_out(render: Render, messages: list[Message], text: str, markers: Iterator[str]) -> int | None:
    """The index of a message whose text the prompt does not show; None if all are shown.

    A message counts as shown if its text is in the prompt, or if a marker behind it is, or if a change of it changes
    the prompt.
    """
    possibly_left_out = list(_possibly_left_out(messages, text))
    if not possibly_left_out:
        return None
    marker = next(markers)
    marked = _changed(messages, {place: ("", f"{marker}{place}{marker}") for place in possibly_left_out})
    try:
        shown = render(marked)
        possibly_left_out = [place for place in possibly_left_out if f"{marker}{place}{marker}" not in shown]
    except RequestError:
        pass  # the template checks one of the contents; the loop below finds which
    for place in possibly_left_out[:_MAX_PROBES]:
        try:
            if render(_changed(messages, {place: ("x", "x")})) == text:
                return place
        except RequestError:
            continue  # the template checks this content, so it is not ignored
    return None


def _possibly_left_out(messages: list[Message], text: str) -> Iterator[int]:
    """Indices of messages whose text is not certain to be in the prompt."""
    position = 0  # end of the last message found; the next one is behind it
    for place, message in enumerate(messages):
        content_text = _last_text(message.get("content")).strip()
        if not content_text or (message.get("role") == "assistant" and any(message.get(key) for key in _CALLS)):
            continue
        found = text.find(content_text, position) if len(content_text) >= _MIN_UNIQUE_LENGTH else -1
        if found < 0:
            yield place
        else:
            position = found + len(content_text)


def _last_text(content: object) -> str:
    """The text of a content, or of its last part that has text."""
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return next((text for text in reversed(texts) if text.strip()), "")
    return content if isinstance(content, str) else ""


def _changed(messages: list[Message], additions: Mapping[int, tuple[str, str]]) -> list[Message]:
    """The messages with the texts ``additions`` (before, behind) added to the texts of some of them."""
    changed = list(messages)
    for place, (before, behind) in additions.items():
        content = messages[place]["content"]
        if isinstance(content, str):
            content = before + content + behind
        else:
            last = max(at for at, part in enumerate(content) if _last_text([part]))
            content = [*content]
            content[last] = {**content[last], "text": before + content[last]["text"] + behind}
        changed[place] = {**messages[place], "content": content}
    return changed
