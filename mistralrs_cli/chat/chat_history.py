"""The history of a chat: the messages that are sent with the next turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["user", "assistant"]
Saved = tuple[str, bool, str | None, str | None]
"""Content, whether it is cut, thinking and stand-in of a message."""
SUMMARY_HEAD = "Summary of our conversation until now:"


@dataclass(slots=True)
class Message:
    """A message of a chat, as it was typed or answered."""

    role: Role
    content: str
    is_cut: bool = False
    """The answer was interrupted; ``content`` is its beginning."""
    id: int | None = None
    """Its number in the store; None: it is not saved yet."""
    saved: Saved | None = None
    """Its state in the store."""
    thinking: str | None = None
    """The thinking before an answer, which the model does not see again."""
    stand_in: str | None = None
    """The text that the model sees in place of this message and of all before it: a summary, or nothing if it is empty.
    None: it sees them."""

    @property
    def state(self) -> Saved:
        """Returns all that is saved of it."""
        return self.content, self.is_cut, self.thinking, self.stand_in

    def copy(self) -> Message:
        """Returns the same message, not saved yet."""
        return replace(self, id=None, saved=None)


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
        self.path = [each.copy() for each in self.path]

    @property
    def num_unseen(self) -> int:
        """Returns how many messages at the beginning the model does not see."""
        return max((place for place, each in enumerate(self.path, 1) if each.stand_in is not None), default=0)

    @property
    def summary(self) -> str:
        """Returns the text that stands in for them; empty: nothing does."""
        return (self.path[self.num_unseen - 1].stand_in or "") if self.num_unseen else ""

    def for_model(self) -> list[Mapping[str, object]]:
        """Returns the messages to send."""
        return messages_to_send(self.system, self.summary, self.path[self.num_unseen :])

    def whole(self) -> list[Mapping[str, object]]:
        """Returns all messages, also those that the model does not see."""
        return messages_to_send(self.system, "", self.path)


def messages_to_send(system: str | None, summary: str, path: Sequence[Message]) -> list[Mapping[str, object]]:
    """Returns messages with a summary of earlier ones before the first question."""
    messages: list[Mapping[str, object]] = [] if system is None else [{"role": "system", "content": system}]
    for each in path:
        content = each.content
        if summary and each.role == "user":
            content, summary = f"{SUMMARY_HEAD}\n{summary}\n\n{content}", ""
        messages.append({"role": each.role, "content": content})
    return messages
