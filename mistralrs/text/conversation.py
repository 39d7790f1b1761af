"""Rewrites a conversation that a chat template refuses into one that it takes, without losing a word of it.

Many templates know no system role, or want user and assistant to take turns, or know a content only as a list of parts.
Knows roles and contents; knows neither Jinja nor tokens.
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
"""Messages for which a prompt is rendered once more each. A template treats one like the next."""
_TELLING = 32
"""Characters of a content that no template writes by chance."""
_A_LIST = "[{'type': 'text'"
_CALLS = ("tool_calls", "function_call")


class TemplateRefusalError(RequestError):
    """The template itself refuses the messages, in its own words."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation's prompt."""

    text: str
    system_moved: bool
    """A system message stands in a user's turn, since the template has no other place for it."""


def render_conversation(render: Render, messages: Sequence[Mapping[str, object]], marks: Iterator[str]) -> Rendered:
    """Renders the messages as they are or, where the template refuses these, the first rewriting that it takes:

    1. consecutive messages of the same role become one;
    2. system messages after the first message go in front of the user's turn that follows;
    3. so do all system messages, also when the template would silently leave one out;
    4. each text becomes a list of one part, also when the template would silently leave out a text.

    The role ``developer`` is ``system`` under another name. ``marks`` yields characters that are in no message and not
    in the template. Raises what ``render`` raises; when every rewriting is refused, the first error, which is about the
    messages as they are. A template may leave out the words beside an assistant's tool calls, and what an assistant
    thought: many do so on purpose.
    """
    given = [
        {**message, "role": "system"} if message.get("role") == "developer" else {**message} for message in messages
    ]
    first_error: RequestError | None = None
    for form in (given, [{**message, "content": _in_parts(message.get("content"))} for message in given]):
        if form == given and first_error is not None:
            break  # they were parts already
        try:
            rendered = _rendered(render, form, marks)
        except RequestError as error:
            first_error = first_error or error
            continue
        if form == given or not _shows_lists(rendered.text, given):
            return rendered
    assert first_error is not None
    raise first_error


def _rendered(render: Render, messages: list[Message], marks: Iterator[str]) -> Rendered:
    """By the first rewriting that the template takes and of which it leaves nothing out."""
    first_error: RequestError | None = None
    for candidate, system_moved in _rewritings(messages):
        try:
            text = render(candidate)
        except TemplateRefusalError as error:
            first_error = first_error or error
            continue
        lost = _left_out(render, candidate, text, marks)
        if lost is None:
            return Rendered(text, system_moved)
        role = candidate[lost].get("role")
        if role != "system":  # which a rewriting would not mend
            raise _leaves_out(f"a message of the role {str(role)[:64]!r}", "another one shows it: --chat-template")
        first_error = first_error or _leaves_out("the system message", "leave it out yourself")
    assert first_error is not None  # there is always one rewriting
    raise first_error


def _leaves_out(what: str, hint: str) -> RequestError:
    return RequestError(f"the chat template leaves out {what}", hint=hint, param="messages")


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


def _in_parts(content: object) -> object:
    return _parts(content) if isinstance(content, str) else content


def _shows_lists(text: str, messages: list[Message]) -> bool:
    """Whether a template that expects texts wrote lists as Python does."""
    return _A_LIST in text and not any(_A_LIST in _words(message.get("content")) for message in messages)


def _left_out(render: Render, messages: list[Message], text: str, marks: Iterator[str]) -> int | None:
    """The place of a message that says something of which the text shows nothing; None: there is none.

    A message is shown where its words are found, or a mark behind them, or other words in their place change the text.
    """
    unseen = list(_unseen(messages, text))
    if not unseen:
        return None
    mark = next(marks)
    marked = _changed(messages, {place: ("", f"{mark}{place}{mark}") for place in unseen})
    try:
        shown = render(marked)
        unseen = [place for place in unseen if f"{mark}{place}{mark}" not in shown]
    except RequestError:
        pass  # it looks at one of them; which is asked below
    for place in unseen[:_MAX_PROBES]:
        try:
            if render(_changed(messages, {place: ("x", "x")})) == text:
                return place
        except RequestError:
            continue  # it looks at this one, then
    return None


def _unseen(messages: list[Message], text: str) -> Iterator[int]:
    """The places of messages whose words are not certain to be in the text."""
    position = 0  # where the last one ended: the next is behind it
    for place, message in enumerate(messages):
        words = _words(message.get("content")).strip()
        if not words or (message.get("role") == "assistant" and any(message.get(key) for key in _CALLS)):
            continue
        found = text.find(words, position) if len(words) >= _TELLING else -1
        if found < 0:
            yield place
        else:
            position = found + len(words)


def _words(content: object) -> str:
    """The text of a content, or that of its last part that has one."""
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return next((text for text in reversed(texts) if text.strip()), "")
    return content if isinstance(content, str) else ""


def _changed(messages: list[Message], additions: Mapping[int, tuple[str, str]]) -> list[Message]:
    """The messages with these texts before and behind the words of some of them."""
    changed = list(messages)
    for place, (before, behind) in additions.items():
        content = messages[place]["content"]
        if isinstance(content, str):
            content = before + content + behind
        else:
            last = max(at for at, part in enumerate(content) if _words([part]))
            content = [*content]
            content[last] = {**content[last], "text": before + content[last]["text"] + behind}
        changed[place] = {**messages[place], "content": content}
    return changed
