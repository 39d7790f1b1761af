"""Saves the turns of a chat as they happen. A failure is said once, and the chat goes on."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator

from mistralrs.api.read_stream import Thought
from mistralrs.engine.events import Delta, Event, TokenLogprob
from mistralrs.errors import MistralrsError
from mistralrs_cli.chat.chat_history import Conversation, Message
from mistralrs_cli.chat_storage.chat_store import ChatStore
from mistralrs_cli.model import AnswerStream

SAVE_EVERY_S = 1.0
"""Seconds between two savings of an answer that is still growing."""


class ChatRecord:
    """The place where a chat is saved: the user's database, or else this process's memory."""

    def __init__(self, store: ChatStore, model: str, *, say: Callable[[str], None], is_kept: bool = True) -> None:
        self.store = store
        self.is_kept = is_kept
        """The store is the user's, and outlives the process."""
        self.model = model
        """The name of the model that new chats are with."""
        self._say = say
        self.has_failed = False
        """The last attempt failed, which was said."""

    def save(self, conversation: Conversation) -> None:
        """Saves what is new of the conversation; an earlier failure is made good."""
        self._attempt(lambda store: store.save(conversation, self.model))

    def remove(self, message: Message) -> None:
        """Removes a message that was never answered."""
        if message.id is not None:
            self._attempt(lambda store: store.remove(message))

    def close(self) -> None:
        """Closes the store."""
        self.store.close()

    def _attempt(self, action: Callable[[ChatStore], None]) -> None:
        try:
            action(self.store)
        except (sqlite3.Error, OSError) as error:
            if not self.has_failed:
                self._say(f"this chat is not saved: {error}")
            self.has_failed = True
        else:
            if self.has_failed:
                self._say("this chat is saved again")
            self.has_failed = False


def open_record(model: str, *, wanted: bool, say: Callable[[str], None]) -> ChatRecord:
    """Returns the record of a chat. ``wanted``: False keeps it in memory alone, as a database that cannot be opened
    does, which is said."""
    if wanted:
        try:
            return ChatRecord(ChatStore.open(), model, say=say)
        except MistralrsError as error:
            say(f"this chat is not saved: {error.message}" + (f"; {error.hint}" if error.hint else ""))
    return ChatRecord(ChatStore.in_memory(), model, say=say, is_kept=False)


class SavedAnswer:
    """A stream of an answer, whose text is saved while it comes, so that a killed process leaves most of it."""

    def __init__(self, stream: AnswerStream, conversation: Conversation, record: ChatRecord) -> None:
        """The answer becomes the last message of ``conversation`` with its first text, or it continues the last one."""
        self._stream = stream
        self._conversation = conversation
        self._record = record
        self._due = time.monotonic() + SAVE_EVERY_S
        last = conversation.path[-1]
        continues = last.role == "assistant"
        self._message = last if continues else Message("assistant", "", is_cut=True)
        self._pieces: list[str] = [last.content] if continues else []
        self._thoughts: list[str] = [last.thinking] if continues and last.thinking else []
        self.logprobs: list[TokenLogprob] = []
        """Those of its tokens, if they were asked for."""

    def __iter__(self) -> Iterator[Event | Thought]:
        for event in self._stream:
            if isinstance(event, Thought):
                self._thoughts.append(event.text)
            elif isinstance(event, Delta):
                self.logprobs += event.logprobs
                if event.text:
                    self._extend(event.text)
            yield event

    def prompt_progress(self) -> tuple[int, int] | None:
        """Returns the progress of the prompt."""
        return self._stream.prompt_progress()

    def cancel(self) -> None:
        """Ends the answer within a step; safe from any thread, and more than once."""
        self._stream.cancel()

    def finish(self, *, is_cut: bool) -> None:
        """Saves the answer as it is now. One that was cut before its first text is none."""
        if not self._pieces and not is_cut:
            self._conversation.path.append(self._message)
        if self._pieces or not is_cut:
            self._message.is_cut = is_cut
            self._save()

    def _extend(self, text: str) -> None:
        if not self._pieces:
            self._conversation.path.append(self._message)
        self._pieces.append(text)
        # A store that fails may make each attempt wait for a lock, which the answer should not do every second.
        if time.monotonic() >= self._due and not self._record.has_failed:
            self._save()
            self._due = time.monotonic() + SAVE_EVERY_S

    def _save(self) -> None:
        self._message.content = "".join(self._pieces)
        self._message.thinking = "".join(self._thoughts) or None
        self._record.save(self._conversation)
