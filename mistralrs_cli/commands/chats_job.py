"""The jobs of ``mistralrs chats``: refuses options that do not fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mistralrs.errors import UsageError
from mistralrs_cli.commands.utility_options import (
    ChatsDeleteOptions,
    ChatsExportOptions,
    ChatsImportOptions,
    ChatsListOptions,
    ChatsOptions,
    ChatsSearchOptions,
    ChatsShowOptions,
)

Action = Literal["list", "show", "search", "export", "import", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatsJob:
    """Does something with the saved chats."""

    action: Action
    chat: str = ""
    """The number, name or title of the chat that the action is about."""
    text: str = ""
    """The words to search for."""
    format: Literal["md", "json", "html"] = "md"
    file: Path | None = None
    """The file to write or read; None: stdout."""
    json: bool = False
    yes: bool = False

    @property
    def writes_answer(self) -> bool:
        """Returns whether the result goes to stdout."""
        return self.action in ("list", "show", "search") or (self.action == "export" and self.file is None)


def chats_job(words: ChatsOptions) -> ChatsJob:
    """Returns the job that the words after ``chats`` describe. Raises ``UsageError``."""
    if isinstance(words, ChatsListOptions):
        return ChatsJob(action="list", json=words.json)
    if isinstance(words, ChatsShowOptions):
        return ChatsJob(action="show", chat=words.chat, json=words.json)
    if isinstance(words, ChatsSearchOptions):
        return ChatsJob(action="search", text=" ".join(words.words), json=words.json)
    if isinstance(words, ChatsImportOptions):
        return ChatsJob(action="import", file=words.file)
    if isinstance(words, ChatsDeleteOptions):
        return ChatsJob(action="delete", chat=words.chat, yes=words.yes)
    return _export_job(words)


def _export_job(words: ChatsExportOptions) -> ChatsJob:
    if words.out is None and words.force:
        raise UsageError("--force is for a file", hint="name it with --out, or leave --force out")
    if words.out is not None and words.out.exists() and not words.force:
        raise UsageError(f"{words.out} is there already", hint="give another name, or --force to replace it")
    return ChatsJob(action="export", chat=words.chat, format=words.format, file=words.out)
