"""Lists of saved chats and of messages that were found in them, as lines of text."""

from __future__ import annotations

import time

from mistralrs_cli.chat_storage.chat_store import ChatSummary, SearchHit
from mistralrs_cli.terminal.output import clean_line

AROUND = 40
"""Characters that are shown on either side of a hit."""


def table(chats: list[ChatSummary]) -> list[str]:
    """Returns a line for each chat: number, time of the last use, messages, model and title."""
    if not chats:
        return ["there is no saved chat"]
    width = max(len(str(each.id)) for each in chats)
    models = [clean_line(each.model)[:24] for each in chats]
    wide = max(map(len, models))
    return [
        f"{each.id:>{width}}  {day(each.updated)}  {each.num_messages:>4} messages  {model:<{wide}}  "
        + clean_line(each.title)
        for each, model in zip(chats, models, strict=True)
    ]


def hits(found: list[SearchHit], text: str) -> list[str]:
    """Returns two lines for each message that was found: its chat, and the text around the first word."""
    if not found:
        return ["nothing was found"]
    lines = []
    for hit in found:
        who = "you" if hit.role == "user" else "answer"
        lines += [f"{hit.chat.id}  {clean_line(hit.chat.title)}  ({who})", f"    {_around(hit.content, text)}"]
    return lines


def day(seconds: float) -> str:
    """Returns a time as the user's clock shows it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _around(content: str, text: str) -> str:
    place = content.casefold().find(text.split()[0].casefold())
    start = max(0, place - AROUND)
    end = max(place, 0) + len(text) + AROUND
    return ("…" if start else "") + clean_line(content[start:end]) + ("…" if end < len(content) else "")
