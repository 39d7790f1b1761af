"""Chats as files: written as Markdown, JSON or HTML, read as OpenAI's messages or ShareGPT's conversations."""

from __future__ import annotations

import contextlib
import html
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any, Literal

from mistralrs.errors import UsageError
from mistralrs.files import read_text
from mistralrs.parsing import parse_nested
from mistralrs_cli.chat.chat_history import Conversation, Message, Role

Format = Literal["md", "json", "html"]
IMPORT_BYTES = 1 << 30
"""Bytes of a file to import, at most."""
_HINT = 'a chat is {"messages": [{"role": "user", "content": "..."}, ...]}, or ShareGPT\'s {"conversations": [...]}'
_SPEAKERS: Mapping[str, Role | Literal["system"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
"""The speakers of ShareGPT's files, by the names that collections in use have."""
_ROLES: Mapping[str, Role | Literal["system"]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


def as_markdown(conversation: Conversation, title: str) -> str:
    """Returns a chat as Markdown: a heading for each message, whose text stands as it is."""
    parts = [f"# {' '.join(title.split())}"]
    if conversation.system is not None:
        parts.append(f"## System\n\n{conversation.system.strip()}")
    for each in conversation.path:
        parts.append(f"## {_heading(each)}")
        if each.thinking:
            parts.append("\n".join(f"> {line}".rstrip() for line in each.thinking.strip().split("\n")))
        parts.append(each.content.strip())
    return "\n\n".join(parts) + "\n"


def as_json(conversation: Conversation, title: str) -> str:
    """Returns a chat as a JSON object with OpenAI's ``messages``."""
    messages = [dict(each) for each in conversation.whole()]
    for message, each in zip(reversed(messages), reversed(conversation.path), strict=False):
        if each.thinking:
            message["reasoning_content"] = each.thinking
    return json.dumps({"title": title, "messages": messages}, ensure_ascii=False, indent=2) + "\n"


def as_html(conversation: Conversation, title: str) -> str:
    """Returns a chat as a page that needs no other file; texts are shown as they are and cannot act."""
    messages = list[tuple[str, str, str]]()
    if conversation.system is not None:
        messages.append(("system", "System", conversation.system))
    for each in conversation.path:
        if each.thinking:
            messages.append(("thinking", "Thinking", each.thinking))
        messages.append((each.role, _heading(each), each.content))
    name = html.escape(" ".join(title.split()))
    body = "\n".join(
        f'<article class="{role}"><h2>{heading}</h2><div>{html.escape(text.strip())}</div></article>'
        for role, heading, text in messages
    )
    return _PAGE.substitute(title=name, body=body)


WRITERS: Mapping[str, Callable[[Conversation, str], str]] = {"md": as_markdown, "json": as_json, "html": as_html}

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 0.85rem; margin: 0; opacity: 0.7; }
article { margin: 1rem 0; padding: 0.75rem 1rem; border-radius: 0.5rem; border: 1px solid #8886; }
article.user { background: #8882; }
article.thinking { opacity: 0.7; font-style: italic; }
div { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def _heading(message: Message) -> str:
    return "You" if message.role == "user" else "Answer (interrupted)" if message.is_cut else "Answer"


def write_new(path: Path, text: str, *, force: bool = False) -> None:
    """Writes a file that only the user may read, whole or not at all. Raises ``UsageError`` where it cannot be written,
    and without ``force`` if it is there."""
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(f"{path} is there already", hint="give another name")
    part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.part")
    try:
        with open(part, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        os.replace(part, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="give another name") from error
    finally:
        with contextlib.suppress(OSError):  # it has its own name now, or the first error is the one to report
            part.unlink()


def read_chats(path: Path) -> list[Conversation]:
    """Returns the chats of a file: one, a JSON list of several, or one a line. Raises ``LoadError`` for a file that
    cannot be read and ``UsageError`` for one that has something else; its message names the place."""
    text = read_text(path, limit=IMPORT_BYTES, hint=_HINT)
    records = _records(text, path)
    if not records:
        raise UsageError(f"{path} has no chat", hint=_HINT)
    return [_chat(record, f"{path}: {place}") for place, record in records]


def _records(text: str, path: Path) -> list[tuple[str, object]]:
    try:
        whole = parse_nested(json.loads, text)
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2:
            raise UsageError(f"{path} is not JSON: {str(error)[:200]}", hint=_HINT) from error
        return [(f"line {number}", _line(line, f"{path}: line {number}")) for number, line in lines]
    if isinstance(whole, list) and not (whole and isinstance(whole[0], dict) and "role" in whole[0]):
        return [(f"chat {number}", each) for number, each in enumerate(whole, 1)]
    return [("chat 1", whole)]


def _line(line: str, place: str) -> object:
    try:
        return parse_nested(json.loads, line)
    except ValueError as error:
        raise UsageError(f"{place} is not JSON: {str(error)[:200]}", hint=_HINT) from error


def _chat(record: object, place: str) -> Conversation:
    name = None
    if isinstance(record, dict):
        name = record.get("title") or record.get("name")
    if isinstance(record, list):
        entries, roles, keys = record, _ROLES, ("role", "content")
    elif isinstance(record, dict) and isinstance(record.get("messages"), list):
        entries, roles, keys = record["messages"], _ROLES, ("role", "content")
    elif isinstance(record, dict) and isinstance(record.get("conversations"), list):
        entries, roles, keys = record["conversations"], _SPEAKERS, ("from", "value")
    else:
        raise UsageError(f"{place} is no chat", hint=_HINT)
    conversation = Conversation()
    for number, entry in enumerate(entries, 1):
        _add(conversation, entry, roles, keys=keys, place=f"{place}, message {number}")
    if not conversation.path:
        raise UsageError(f"{place} has no message of a user", hint=_HINT)
    conversation.name = name if isinstance(name, str) and name.strip() and not name.strip().isdecimal() else None
    return conversation


def _add(
    conversation: Conversation,
    entry: object,
    roles: Mapping[str, Role | Literal["system"]],
    *,
    keys: tuple[str, str],
    place: str,
) -> None:
    if not isinstance(entry, dict) or not all(key in entry for key in keys):
        raise UsageError(f"{place} has no {keys[0]} and {keys[1]}", hint=_HINT)
    role = roles.get(str(entry[keys[0]]))
    if role is None or entry.get("tool_calls"):
        kind = "a call of a tool" if role else f"of {str(entry[keys[0]])[:40]}"
        raise UsageError(f"{place} is {kind}, which a chat cannot have", hint=f"known are {', '.join(roles)}")
    text = _text(entry[keys[1]], place)
    if role != "system":
        thinking = entry.get("reasoning_content")
        kept = thinking if isinstance(thinking, str) and thinking and role == "assistant" else None
        conversation.path.append(Message(role, text, thinking=kept))
    elif conversation.path or conversation.system is not None:
        raise UsageError(f"{place} is a second or later system message", hint="a chat has one, before all others")
    else:
        conversation.system = text


def _text(content: Any, place: str) -> str:
    """Returns the text of a message: a string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise UsageError(f"{place} is more than text", hint="a chat can have text alone")
