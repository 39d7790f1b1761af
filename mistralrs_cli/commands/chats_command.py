"""Runs ``mistralrs chats``: the saved chats, without a model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from mistralrs.errors import UsageError
from mistralrs_cli.chat_storage.chat_formats import WRITERS, write_new
from mistralrs_cli.chat_storage.chat_lists import hits, table
from mistralrs_cli.chat_storage.chat_store import ChatStore, ChatSummary
from mistralrs_cli.chat_storage.saved_chats import import_chats, named_errors
from mistralrs_cli.commands.chats_job import ChatsJob
from mistralrs_cli.terminal.output import Streams, clean_block, clean_line, is_terminal


def run_chats(job: ChatsJob, streams: Streams) -> int:
    """Runs the job; returns the exit code."""
    with contextlib.closing(ChatStore.open()) as store, named_errors():
        _ACTIONS[job.action](job, store, streams)
    streams.stdout.flush()
    return 0


def _list(job: ChatsJob, store: ChatStore, streams: Streams) -> None:
    chats = store.chats()
    if job.json:
        streams.stdout.write(json.dumps([_record(each) for each in chats], ensure_ascii=False) + "\n")
    else:
        streams.stdout.writelines(f"{line}\n" for line in table(chats))


def _record(chat: ChatSummary) -> dict[str, object]:
    return {**asdict(chat), "title": chat.title}


def _show(job: ChatsJob, store: ChatStore, streams: Streams) -> None:
    chat = store.find(job.chat)
    text = WRITERS["json" if job.json else "md"](store.load(chat), chat.title)
    streams.stdout.write(clean_block(text) if is_terminal(streams.stdout) else text)


def _search(job: ChatsJob, store: ChatStore, streams: Streams) -> None:
    found = store.search(job.text, limit=100)
    if job.json:
        records = [{"chat": _record(hit.chat), "role": hit.role, "content": hit.content} for hit in found]
        streams.stdout.write(json.dumps(records, ensure_ascii=False) + "\n")
    else:
        streams.stdout.writelines(f"{line}\n" for line in hits(found, job.text))


def _export(job: ChatsJob, store: ChatStore, streams: Streams) -> None:
    chat = store.find(job.chat)
    text = WRITERS[job.format](store.load(chat), chat.title)
    if job.file is None:
        streams.stdout.write(clean_block(text) if is_terminal(streams.stdout) else text)
    else:
        write_new(job.file, text, force=True)  # the job was refused if the file is there and may not be replaced
        streams.stderr.write(f"{clean_line(str(job.file))} has chat {chat.id}\n")


def _import(job: ChatsJob, store: ChatStore, streams: Streams) -> None:
    assert job.file is not None
    chats = import_chats(store, job.file)
    numbers = ", ".join(str(chat.id) for chat in chats)
    streams.stderr.write(f"{len(chats)} chat{'' if len(chats) == 1 else 's'} saved: {numbers}\n")


def _delete(job: ChatsJob, store: ChatStore, streams: Streams) -> None:
    chat = store.find(job.chat)
    title = clean_line(chat.title)
    if not job.yes and not _confirmed(chat.id, title, streams):
        streams.stderr.write("nothing was deleted\n")
        return
    store.delete(chat.id)
    streams.stderr.write(f"chat {chat.id} is deleted: {title}\n")


def _confirmed(number: int, title: str, streams: Streams) -> bool:
    if not (is_terminal(streams.stdin) and is_terminal(streams.stderr)):
        raise UsageError(f"nobody can be asked whether to delete chat {number}", hint="add --yes to delete it anyway")
    streams.stderr.write(f"delete chat {number}, {title}? [y/N] ")
    streams.stderr.flush()
    return streams.stdin.readline().strip().lower() in ("y", "yes")


_ACTIONS: Mapping[str, Callable[[ChatsJob, ChatStore, Streams], None]] = {
    "list": _list,
    "show": _show,
    "search": _search,
    "export": _export,
    "import": _import,
    "delete": _delete,
}
