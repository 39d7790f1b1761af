"""The saved chats of the user, in one SQLite database that several processes may use at once.

Messages form a tree: each names its parent, and a chat's tip is the last message of the path that it shows.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import LoadError, UsageError
from mistralrs_cli.chat.chat_history import Conversation, Message, Role, Saved
from mistralrs_cli.chat_storage.chat_schema import database_file, memory_database, open_database, transaction

TITLE_LENGTH = 60
"""Characters of a chat's first message that stand for its name."""
_SUMMARY = """
SELECT chats.id, chats.name, chats.model, chats.created, chats.updated,
    (SELECT count(*) FROM messages WHERE chat = chats.id),
    coalesce((SELECT substr(content, 1, 400) FROM messages WHERE chat = chats.id ORDER BY id LIMIT 1), '')
FROM chats
"""
_PATH = """
WITH RECURSIVE path (id, parent, depth) AS (
    SELECT id, parent, 0 FROM messages WHERE id = ? AND chat = ?
    UNION ALL SELECT messages.id, messages.parent, depth + 1 FROM messages JOIN path ON messages.id = path.parent
)
SELECT messages.id, role, content, is_cut, thinking, stand_in
FROM path JOIN messages ON messages.id = path.id ORDER BY depth DESC
"""


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """A saved chat without its messages."""

    id: int
    name: str | None
    """The name that the user gave it."""
    model: str
    created: float
    updated: float
    """Seconds since the epoch, like ``created``."""
    num_messages: int
    """Those of all branches."""
    first: str
    """The beginning of the first message."""

    @property
    def title(self) -> str:
        """Returns the name, or else the beginning of the first message; unchecked text on one line."""
        if self.name is not None:
            return self.name
        words = " ".join(self.first.split())
        return words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 1] + "…"


@dataclass(frozen=True, slots=True)
class TreeMessage:
    """A message of a chat's tree."""

    message: Message
    parent: int | None
    """The number of the message before it; None: it is a first one."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A message that matches a search."""

    chat: ChatSummary
    role: str
    content: str


class ChatStore:
    """The chats of one database. Methods raise ``sqlite3.Error`` when it cannot be read or written."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path | None = None) -> ChatStore:
        """Opens the database at ``path``, or the user's. Raises ``LoadError`` where there can be none."""
        path = path or database_file()
        if path is None:
            raise LoadError("there is no home folder to save chats in", hint="XDG_DATA_HOME names another one")
        try:
            return cls(open_database(path))
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise LoadError(f"{path} cannot be opened: {reason}", hint="XDG_DATA_HOME names another folder") from error

    @classmethod
    def in_memory(cls) -> ChatStore:
        """Returns an empty store that ends with the process."""
        return cls(memory_database())

    def close(self) -> None:
        """Closes the database."""
        self._connection.close()

    def save(self, conversation: Conversation, model: str) -> None:
        """Saves what is new or changed of a conversation, and makes its path the one that the chat shows.

        Numbers are given to the chat and to its messages that had none. All is saved or nothing, so that the next call
        makes good a failure of this one. ``model``: the name of the model that a new chat is with.
        """
        if conversation.id is None and not conversation.path:
            return
        now, ids, chat = time.time(), [each.id for each in conversation.path], conversation.id
        with transaction(self._connection):
            run = self._connection.execute
            if chat is not None and run("SELECT 1 FROM chats WHERE id = ?", (chat,)).fetchone() is None:
                chat, ids = None, [None] * len(ids)  # it was deleted meanwhile
            if chat is None and not conversation.path:
                conversation.id = None
                return
            if chat is None:
                chat = self._add_chat(conversation, model, now)
            parent: int | None = None
            for index, message in enumerate(conversation.path):
                if ids[index] is None:
                    ids[index] = self._add_message(message, chat, parent=parent, created=now)
                elif message.saved != message.state:
                    values = (*_storable_state(message), message.id)
                    run("UPDATE messages SET content = ?, is_cut = ?, thinking = ?, stand_in = ? WHERE id = ?", values)
                parent = ids[index]
            run(
                "UPDATE chats SET tip = ?, system = ?, updated = ? WHERE id = ?",
                (parent, _storable(conversation.system), now, chat),
            )
        conversation.id = chat
        for message, number in zip(conversation.path, ids, strict=True):
            message.id, message.saved = number, message.state

    def remove(self, message: Message) -> None:
        """Removes a saved message, unless others follow it; a chat without messages goes with the last one."""
        with transaction(self._connection):
            run = self._connection.execute
            found = run("SELECT chat, parent FROM messages WHERE id = ?", (message.id,)).fetchone()
            if found is None or run("SELECT 1 FROM messages WHERE parent = ?", (message.id,)).fetchone():
                return
            chat, parent = found
            run("DELETE FROM messages WHERE id = ?", (message.id,))
            run("UPDATE chats SET tip = ? WHERE id = ?", (parent, chat))
            run("DELETE FROM chats WHERE id = ? AND NOT EXISTS (SELECT 1 FROM messages WHERE chat = ?)", (chat, chat))

    def rename(self, chat: int, name: str) -> None:
        """Names a chat. Raises ``UsageError`` for a name that another chat has, or that is none."""
        name = str(_storable(name))
        if not name.strip() or name.strip().isdecimal():
            raise UsageError("a chat's name has a letter at least", hint="numbers are those of all chats")
        try:
            with transaction(self._connection):
                self._connection.execute("UPDATE chats SET name = ? WHERE id = ?", (name.strip(), chat))
        except sqlite3.IntegrityError:
            raise UsageError(f"another chat has the name {name.strip()}", hint="choose another one") from None

    def delete(self, chat: int) -> None:
        """Deletes a chat with all its branches, and leaves nothing of it in the file."""
        with transaction(self._connection):
            self._connection.execute("DELETE FROM chats WHERE id = ?", (chat,))
        self._connection.execute("INSERT INTO messages_text (messages_text) VALUES ('optimize')")  # forgets its words
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def chats(self, limit: int = -1) -> list[ChatSummary]:
        """Returns the chats, the last used first; ``limit``: at most so many, -1: all."""
        return self._summaries("ORDER BY updated DESC, chats.id DESC LIMIT ?", (limit,))

    def find(self, wanted: str) -> ChatSummary:
        """Returns the chat of this number or name, or the only one whose title begins so; empty: the last used one.

        Raises ``UsageError``.
        """
        wanted = wanted.strip()
        if not wanted:
            found = self.chats(1)
        elif wanted.isdecimal():
            found = self._summaries("WHERE chats.id = ?", (min(int(wanted[:19]), 2**63 - 1),))
        else:
            found = self._summaries("WHERE name = ?", (wanted,)) or [
                each for each in self.chats() if each.title.casefold().startswith(wanted.casefold())
            ]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(str(each.id) for each in found[:8])
            raise UsageError(f"several chats begin with {wanted}: {numbers}", hint="give the number of one")
        raise UsageError(
            f"there is no chat {wanted}" if wanted else "there is no saved chat", hint="mistralrs chats list lists them"
        )

    def load(self, summary: ChatSummary) -> Conversation:
        """Returns a chat with its path. Raises ``UsageError`` if it has been deleted."""
        run = self._connection.execute
        row = run("SELECT system, tip FROM chats WHERE id = ?", (summary.id,)).fetchone()
        if row is None:
            raise UsageError(f"chat {summary.id} has been deleted", hint="mistralrs chats list lists the others")
        path = self.path_to(summary.id, row[1])
        unanswered = path.pop() if path and path[-1].role == "user" else None
        return Conversation(row[0], path, summary.id, summary.name, unanswered)

    def path_to(self, chat: int, tip: int | None) -> list[Message]:
        """Returns the messages of a chat from its first one to ``tip``; None: none."""
        rows = self._connection.execute(_PATH, (tip, chat)).fetchall()
        return [_message(*row) for row in rows]

    def messages(self, chat: int) -> list[TreeMessage]:
        """Returns all messages of a chat, the oldest first: a message comes after its parent."""
        rows = self._connection.execute(
            "SELECT parent, id, role, content, is_cut, thinking, stand_in FROM messages WHERE chat = ? ORDER BY id",
            (chat,),
        ).fetchall()
        return [TreeMessage(_message(*row), parent) for parent, *row in rows]

    def search(self, text: str, *, limit: int = 20) -> list[SearchHit]:
        """Returns the messages that contain all words of ``text``, also within other words; the youngest first.

        Letters match in either case, except letters beyond ASCII in words of one or two characters: these words are no
        part of the index and are looked for in every message.
        """
        words = str(_storable(text)).split()
        if not words:
            raise UsageError("nothing to search for", hint="give a word or several")
        conditions, values = [], []
        for word in words:
            if len(word) >= 3:
                conditions.append("messages.id IN (SELECT rowid FROM messages_text WHERE messages_text MATCH ?)")
                values.append('"' + word.replace('"', '""') + '"')
            else:
                conditions.append("messages.content LIKE ? ESCAPE '\\'")
                values.append("%" + re.sub(r"([\\%_])", r"\\\1", word) + "%")
        rows = self._connection.execute(
            f"SELECT chat, role, content FROM messages WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT ?",
            (*values, limit),
        ).fetchall()
        chats = {each.id: each for each in self.chats()}
        return [SearchHit(chats[chat], role, content) for chat, role, content in rows if chat in chats]

    def _summaries(self, rest: str, values: Sequence[object]) -> list[ChatSummary]:
        rows = self._connection.execute(_SUMMARY + rest, tuple(values)).fetchall()
        return [ChatSummary(*row) for row in rows]

    def _add_chat(self, conversation: Conversation, model: str, now: float) -> int:
        row = self._connection.execute(
            "INSERT INTO chats (name, model, system, created, updated) VALUES (?, ?, ?, ?, ?) RETURNING id",
            (conversation.name, model, _storable(conversation.system), now, now),
        ).fetchone()
        return int(row[0])

    def _add_message(self, message: Message, chat: int, *, parent: int | None, created: float) -> int:
        row = self._connection.execute(
            "INSERT INTO messages (chat, parent, role, content, is_cut, thinking, stand_in, created)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (chat, parent, message.role, *_storable_state(message), created),
        ).fetchone()
        return int(row[0])


def _message(number: int, role: Role, text: str, cut: int, thinking: str | None, stand_in: str | None) -> Message:
    found = Message(role, text, bool(cut), number, thinking=thinking, stand_in=stand_in)
    found.saved = found.state
    return found


def _storable_state(message: Message) -> Saved:
    content = str(_storable(message.content))
    return content, message.is_cut, _storable(message.thinking), _storable(message.stand_in)


def _storable(text: str | None) -> str | None:
    """Returns text that is valid Unicode: half a surrogate pair, which a terminal can send, becomes an escape."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
