"""The chat's commands about saved chats: begin, resume, list, search, name, export and import them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mistralrs.errors import LoadError, UsageError
from mistralrs.user_dirs import expand_user
from mistralrs_cli.chat.chat_history import Conversation
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_input.attachments import as_draft
from mistralrs_cli.chat_storage.chat_formats import WRITERS, read_chats, write_new
from mistralrs_cli.chat_storage.chat_lists import day, hits, table
from mistralrs_cli.chat_storage.chat_store import ChatStore, ChatSummary
from mistralrs_cli.terminal.output import clean_block, clean_line

NUM_LISTED = 20
"""Chats that ``/sessions`` shows."""
RECAP_LINES = 12
"""Lines of the last answer that a resumed chat shows."""


def new(chat: Chat, argument: str) -> None:
    """Begins another chat with the same system message."""
    left = chat.conversation
    chat.conversation = Conversation(left.system)
    kept = "" if left.id is None or not chat.record.is_kept else f"; chat {left.id} stays saved"
    chat.notes.say(f"the conversation is empty{kept}")


def sessions(chat: Chat, argument: str) -> None:
    """Lists the chats that were used last."""
    with _store_of(chat) as store:
        found = store.chats(NUM_LISTED + 1)
    chat.notes.say(*table(found[:NUM_LISTED]))
    if len(found) > NUM_LISTED:
        chat.notes.say("there are more: mistralrs chats list, /search TEXT")


def search(chat: Chat, argument: str) -> None:
    """Shows the messages that have all words."""
    with _store_of(chat) as store:
        found = store.search(argument)
    chat.notes.say(*hits(found, argument))


def rename(chat: Chat, argument: str) -> None:
    """Names the chat."""
    if not argument:
        raise UsageError("/rename needs a name", hint="/rename NAME")
    with _store_of(chat) as store:
        number = chat.conversation.id if chat.record.is_kept else None
        if number is None:
            raise UsageError("nothing of this chat is saved yet", hint="name it after its first message")
        store.rename(number, argument)
    chat.conversation.name = argument
    chat.notes.say(f"chat {number} is named {clean_line(argument)}")


def export(chat: Chat, argument: str) -> None:
    """Writes the chat as it stands to a file, also one that is not saved."""
    kind, _, name = argument.partition(" ")
    if kind not in WRITERS:
        raise UsageError(f"/export {clean_line(kind)}: no such format", hint="/export md, json or html, and a file")
    conversation = chat.conversation
    if not conversation.path:
        raise UsageError("the conversation is empty", hint="export it after its first answer")
    path = expand_user(name.strip() or f"chat-{conversation.id or 'unsaved'}.{kind}")
    write_new(path, WRITERS[kind](conversation, conversation.name or conversation.path[0].content[:60]))
    chat.notes.say(f"written: {clean_line(str(path))}")


def import_file(chat: Chat, argument: str) -> None:
    """Saves the chats of a file, and goes on with the first."""
    if not argument:
        raise UsageError("/import needs a file", hint="/import FILE")
    path = expand_user(argument)
    with _store_of(chat) as store:
        chats = import_chats(store, path)
        first = store.find(str(chats[0].id))
    chat.notes.say(f"{len(chats)} chat{'' if len(chats) == 1 else 's'} saved")
    resume(chat, first, shows_last=True)


def import_chats(store: ChatStore, path: Path) -> list[Conversation]:
    """Saves the chats of a file, each as a new one, and returns them. A title that another chat has is left out."""
    chats = read_chats(path)
    taken = {each.name for each in store.chats()}
    for each in chats:
        each.name = None if each.name in taken else each.name
        taken.add(each.name)
        store.save(each, f"imported from {path.name}")
    return chats


def resume_named(chat: Chat, argument: str) -> None:
    """Goes on with another chat; without a name, with the last one that is not this."""
    with _store_of(chat) as store:
        others = [] if argument else [each for each in store.chats(2) if each.id != chat.conversation.id]
        found = others[0] if others else store.find(argument)
    resume(chat, found, shows_last=True)


def find_to_resume(wanted: str) -> ChatSummary:
    """Returns a saved chat. Raises ``UsageError`` if there is none, and ``LoadError`` if none can be read."""
    with contextlib.closing(ChatStore.open()) as store, named_errors():
        return store.find(wanted)


def resume(chat: Chat, found: ChatSummary, *, shows_last: bool) -> None:
    """Makes a saved chat the one that goes on. ``shows_last``: shows its last question and answer, and makes a question
    that was not answered the draft of the next line."""
    with _store_of(chat) as store:
        conversation = store.load(found)
    if not chat.record.is_kept:
        conversation.detach()
    chat.conversation = conversation
    if not shows_last:
        return
    other = "" if found.model == chat.model.info.name else f", until now with {found.model}"
    number = f"{found.num_messages} message{'' if found.num_messages == 1 else 's'}"
    lines = [f"resuming chat {found.id}, {found.title}: {number}, last used {day(found.updated)}{other}"]
    chat.notes.say(clean_line(lines[0]), *chat.describe_unseen(), *_recap(conversation))
    if conversation.unanswered is not None:
        chat.draft = as_draft(conversation.unanswered.content)
        chat.notes.say("your last message has no answer yet: Enter sends it")


def _recap(conversation: Conversation) -> list[str]:
    """Returns the last question and the end of the last answer."""
    shown = []
    for message in conversation.path[-2:]:
        lines = clean_block(message.content).strip().split("\n")
        cut = ["..."] if len(lines) > RECAP_LINES else []
        mark = "> " if message.role == "user" else ""
        shown += [f"{mark}{line}" for line in cut + lines[-RECAP_LINES:]]
        if message.is_cut:
            shown.append("[interrupted here]")
    return shown


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Turns SQLite's errors into one that names the saved chats."""
    try:
        yield
    except sqlite3.Error as error:
        raise LoadError(f"the saved chats cannot be used: {error}", hint="the chat goes on without them") from error


@contextlib.contextmanager
def _store_of(chat: Chat) -> Iterator[ChatStore]:
    """The store of the chat, or for one that is not saved a store for the moment."""
    with named_errors():
        if chat.record.is_kept:
            yield chat.record.store
            return
        with contextlib.closing(ChatStore.open()) as store:
            yield store
