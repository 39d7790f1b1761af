"""Suggests arguments of commands: words, paths, adapters, saved chats."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import MistralrsError
from mistralrs.user_dirs import expand_user
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_storage.chat_store import ChatStore
from mistralrs_cli.terminal.output import clean_line

MAX_CHATS = 50
"""Saved chats that are suggested."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A text that the argument typed so far may become."""

    text: str
    shown: str
    """The part that a list of suggestions shows."""


Suggest = Callable[[Chat, str], Iterable[Suggestion]]


def words(*known: str) -> Suggest:
    """Returns the suggestions for an argument that is one of these words."""
    return lambda chat, typed: [Suggestion(word, word) for word in known if word.startswith(typed)]


def paths(chat: Chat, typed: str) -> list[Suggestion]:
    """Returns the paths that ``typed`` begins; a folder ends with a slash. Names that a terminal cannot show are left
    out."""
    folder, _, begun = typed.rpartition("/")
    try:
        place = expand_user(folder + "/") if "/" in typed else Path()
        with os.scandir(place) as entries:
            found = sorted((each.name, each.is_dir()) for each in entries)
    except (OSError, MistralrsError):
        return []
    before = typed[: len(typed) - len(begun)]
    return [
        Suggestion(f"{before}{name}{'/' if is_folder else ''}", f"{name}{'/' if is_folder else ''}")
        for name, is_folder in found
        if name.startswith(begun) and (begun.startswith(".") or not name.startswith(".")) and clean_line(name) == name
    ]


def words_or_paths(*known: str) -> Suggest:
    """Returns the suggestions for one of these words or a path."""
    return lambda chat, typed: [*words(*known)(chat, typed), *paths(chat, typed)]


def after_a_word(*known: str) -> Suggest:
    """Returns the suggestions for one of these words, followed by a path."""

    def suggest(chat: Chat, typed: str) -> Iterable[Suggestion]:
        word, space, path = typed.partition(" ")
        if not space:
            return words(*known)(chat, typed)
        return [Suggestion(f"{word} {each.text}", each.shown) for each in paths(chat, path.lstrip())]

    return suggest


def adapters(chat: Chat, typed: str) -> list[Suggestion]:
    """Returns the names of adapters for the last word of ``typed``."""
    *before, begun = typed.split(" ")
    names = [*chat.model.known_adapters().names, *(("list", "none") if not before else ())]
    return [
        Suggestion(" ".join([*before, name]), name)
        for name in names
        if name.startswith(begun) and clean_line(name) == name  # one that can be typed
    ]


def saved_chats(chat: Chat, typed: str) -> list[Suggestion]:
    """Returns the names of saved chats, and the numbers of those without a name; none where they cannot be read."""
    with contextlib.suppress(sqlite3.Error, MistralrsError):
        if chat.record.is_kept:
            return _of_store(chat.record.store, typed)
        with contextlib.closing(ChatStore.open()) as store:
            return _of_store(store, typed)
    return []


def _of_store(store: ChatStore, typed: str) -> list[Suggestion]:
    return [
        Suggestion(each.name or str(each.id), f"{each.name or each.id}")
        for each in store.chats(MAX_CHATS)
        if (each.name or str(each.id)).startswith(typed) and clean_line(each.name or "") == (each.name or "")
    ]
