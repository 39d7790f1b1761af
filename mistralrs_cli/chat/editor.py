"""Reads what the user types on a terminal: keys, several lines, history. Knows nothing of models and commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import create_output

from mistralrs_cli.chat.history import PrivateHistory, history_file
from mistralrs_cli.output import Streams, is_terminal

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent

BLOCK = '"""'
TWICE = 1.0
"""Seconds within which a second Ctrl-C leaves."""


class LeftByInterrupt(Exception):
    """Ctrl-C was pressed twice."""


class Editor:
    """One line editor for a whole chat."""

    def __init__(self, streams: Streams, *, say: Callable[[str], None]) -> None:
        self._say = say
        self._interrupted_at = -TWICE
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="... ",
            key_bindings=self._bindings(),
            history=PrivateHistory(history_file(), complain=say),
            enable_suspend=True,
            output=create_output(streams.stdout if is_terminal(streams.stdout) else streams.stderr),
        )

    def read(self, draft: str = "") -> str:
        """What the user sends, beginning with ``draft`` in the line.

        Raises ``EOFError`` for Ctrl-D on an empty line and ``LeftByInterrupt`` for two Ctrl-C in a row.
        """
        while True:
            try:
                return unfold(self._session.prompt(default=draft))
            except KeyboardInterrupt:
                draft = ""
                self._say("Ctrl-D or /exit leaves; so does Ctrl-C twice")

    def _interrupt(self, event: KeyPressEvent) -> None:
        now = time.monotonic()
        if now - self._interrupted_at < TWICE:
            event.app.exit(exception=LeftByInterrupt(), style="class:aborting")
        elif event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")
        self._interrupted_at = now

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        bindings.add("c-c")(self._interrupt)
        bindings.add("<sigint>")(self._interrupt)

        @bindings.add("enter")
        def _send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.newline(copy_margin=False)
            elif in_open_block(buffer.text):
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @bindings.add("escape", "enter")
        @bindings.add("c-j")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        return bindings


def in_open_block(text: str) -> bool:
    """Whether ``text`` begins a block of lines with three quotes and has not ended it."""
    body = text.strip()
    return body.startswith(BLOCK) and not (len(body) >= 2 * len(BLOCK) and body.endswith(BLOCK))


def unfold(text: str) -> str:
    """The message that was typed: without the quotes around a block, and without the line feeds next to them."""
    body = text.strip()
    if body.startswith(BLOCK) and len(body) >= 2 * len(BLOCK) and body.endswith(BLOCK):
        return body[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text
