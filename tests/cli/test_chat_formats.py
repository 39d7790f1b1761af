"""Files of chats: those of other programs are read or refused by name, and what is written is read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistralrs.errors import MistralrsError
from mistralrs_cli.chat.chat_history import Conversation, Message
from mistralrs_cli.chat_storage.chat_formats import as_html, as_json, as_markdown, read_chats

PAIR = [("user", "Hi"), ("assistant", "Hello")]


def read(folder: Path, text: str) -> list[tuple[str | None, list[tuple[str, str]]]]:
    """The system message and the path of each chat in a file with this text."""
    path = folder / "chats.json"
    path.write_text(text)
    return [(chat.system, [(each.role, each.content) for each in chat.path]) for chat in read_chats(path)]


OPENAI = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
WITH_SYSTEM = {"messages": [{"role": "developer", "content": "S"}, *OPENAI["messages"]]}
PARTS = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": "Hello"},
    ]
}


@pytest.mark.parametrize(
    ("text", "chats"),
    [
        (json.dumps(OPENAI), [(None, PAIR)]),
        (json.dumps(OPENAI["messages"]), [(None, PAIR)]),
        (json.dumps(SHAREGPT), [(None, PAIR)]),
        (json.dumps([SHAREGPT, OPENAI]), [(None, PAIR)] * 2),
        (json.dumps(WITH_SYSTEM, indent=2), [("S", PAIR)]),
        (json.dumps(PARTS), [(None, PAIR)]),
        ("\n".join(map(json.dumps, [OPENAI, SHAREGPT, WITH_SYSTEM])), [(None, PAIR), (None, PAIR), ("S", PAIR)]),
    ],
)
def test_files_of_others_are_read(tmp_path: Path, text: str, chats: object) -> None:
    assert read(tmp_path, text) == chats


def one(**message: object) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "a"}, message]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no text|has no chat|not JSON|is empty"),
        ("hello", "is not JSON"),
        ("[]", "has no chat"),
        ("{}", "chat 1 is no chat"),
        ('{"messages": []}', "chat 1 has no message of a user"),
        (json.dumps([OPENAI, 3]), "chat 2 is no chat"),
        (json.dumps(OPENAI) + "\n{half", "line 2 is not JSON"),
        (one(role="tool", content="x"), "chat 1, message 2 is of tool, which a chat cannot have"),
        (one(role="assistant", content=None), "chat 1, message 2 is more than text"),
        (one(role="assistant", content="", tool_calls=[{"id": "1"}]), "message 2 is a call of a tool"),
        (one(role="user", content=[{"type": "image_url", "image_url": {}}]), "message 2 is more than text"),
        (one(role="user"), "message 2 has no role and content"),
        (one(role="system", content="late"), "message 2 is a second or later system message"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_no_chats_are_refused_by_place(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(MistralrsError, match=reason):
        read(tmp_path, text)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    chat = Conversation("S", [Message("user", "Hi\n# no heading"), Message("assistant", "Hel", is_cut=True)])
    assert read(tmp_path, as_json(chat, "t")) == [("S", [("user", "Hi\n# no heading"), ("assistant", "Hel")])]
    markdown = as_markdown(chat, "a\nb")
    assert markdown == "# a b\n\n## System\n\nS\n\n## You\n\nHi\n# no heading\n\n## Answer (interrupted)\n\nHel\n"
    page = as_html(Conversation(None, [Message("user", '<script>alert(1)</script>"BODY')]), "<TITLE> BODY")
    assert "<script" not in page
    assert "<h1>&lt;TITLE&gt; BODY</h1>" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&quot;BODY" in page
