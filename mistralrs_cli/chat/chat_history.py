"""The history of a chat: the messages that are sent with the next turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Conversation:
    """The system message and the completed turns."""

    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    """(the user's text, the model's answer)"""

    def asking(self, text: str) -> list[Mapping[str, object]]:
        """Returns the messages to send for a turn that is not yet part of the conversation."""
        messages: list[Mapping[str, object]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for question, answer in self.turns:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        messages.append({"role": "user", "content": text})
        return messages

    def add(self, question: str, answer: str) -> None:
        """Adds a complete turn."""
        self.turns.append((question, answer))

    def clear(self) -> None:
        """Removes the turns; the system message stays."""
        self.turns.clear()
