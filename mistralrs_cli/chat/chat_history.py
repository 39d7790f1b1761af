"""The history of a chat: the messages that are sent with the next turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["user", "assistant"]


@dataclass(slots=True)
class Message:
    """A message of a chat, as it was typed or answered."""

    role: Role
    content: str
    is_cut: bool = False
    """The answer was interrupted; ``content`` is its beginning."""
    id: int | None = None
    """Its number in the store; None: it is not saved yet."""
    saved: tuple[str, bool] | None = None
    """``content`` and ``is_cut`` as they are in the store."""


@dataclass(slots=True)
class Conversation:
    """The system message, and the path of messages that the model sees."""

    system: str | None = None
    path: list[Message] = field(default_factory=list)
    id: int | None = None
    """The chat's number in the store; None: nothing of it is saved."""
    name: str | None = None
    """The name that the user gave it."""
    unanswered: Message | None = None
    """A saved question beyond the path, which a process that ended did not answer."""

    def detach(self) -> None:
        """Forgets the numbers in the store, so that the next saving makes a new chat."""
        self.id = self.name = None
        self.path = [Message(each.role, each.content, each.is_cut) for each in self.path]

    def for_model(self) -> list[Mapping[str, object]]:
        """Returns the messages to send."""
        messages: list[Mapping[str, object]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        messages.extend({"role": each.role, "content": each.content} for each in self.path)
        return messages
