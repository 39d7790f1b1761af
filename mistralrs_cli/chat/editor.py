"""Reads the user's input on a terminal: keys, several lines, history."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from mistralrs_cli.chat.input_history import PrivateHistory, history_file
from mistralrs_cli.terminal.output import Streams, is_terminal

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyPressEvent

BLOCK = '"""'
TWICE = 1.0
"""Seconds within which a second Ctrl-C leaves the chat."""


class LeftByInterrupt(Exception):
    """Ctrl-C was pressed twice."""


class Editor:
    """One line editor for a whole chat.

    While entered, it handles Ctrl-C: as a key, as a signal from elsewhere, and between two reads, when the terminal
    turns the key into a signal.
    """

    def __init__(
        self,
        streams: Streams,
        *,
        say: Callable[[str], None],
        completer: Completer | None = None,
        keeps_history: bool = True,
    ) -> None:
        """``say`` shows a line beside the input; ``completer`` completes it at Tab."""
        self._say = say
        self._interrupted_at = -math.inf
        self._pending = False
        """Ctrl-C came when no line was being edited."""
        self.cleared = False
        """Ctrl-C emptied the line that was read last before it was sent."""
        self.pasted: list[str] = []
        """The parts of the last input that were pasted."""
        self.meter: Callable[[], str] = lambda: ""
        """Returns the text at the right end of the line."""
        self._multiline = False
        self._output = create_output(streams.stdout if is_terminal(streams.stdout) else streams.stderr)
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="... ",
            key_bindings=self._bindings(),
            history=PrivateHistory(history_file(), complain=say, keeps=keeps_history),
            enable_suspend=True,
            completer=completer,
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            tempfile_suffix=".md",
            rprompt=self._right_end,
            output=self._output,
        )

    def _right_end(self) -> AnyFormattedText:
        """Returns the meter; nothing once the line is sent, so that it does not stay beside it."""
        return [] if self._session.app.is_done else [("ansibrightblack", self.meter())]

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._signalled)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def read(self, draft: str = "", *, multiline: bool = False, opens_editor: bool = False) -> str:
        """Returns the user's input; the line begins with ``draft``.

        ``multiline``: Enter begins a new line and Alt-Enter sends; ``opens_editor``: the user's editor opens at once.

        Raises ``EOFError`` for Ctrl-D on an empty line and ``LeftByInterrupt`` for two Ctrl-C in a row.
        """
        self.cleared = False
        self.pasted.clear()
        self._multiline = multiline

        def begin() -> None:
            self._deliver_pending()
            if opens_editor:
                self._session.default_buffer.open_in_editor()

        while True:
            try:
                text = self._session.prompt(default=draft, pre_run=begin, handle_sigint=False)
            except KeyboardInterrupt:
                draft, opens_editor = "", False
                self._say("Ctrl-D or /exit leaves; so does Ctrl-C twice")
            else:
                self._interrupted_at = -math.inf  # a Ctrl-C after this is no second one
                return unfold(text)

    def confirm(self, question: str) -> bool:
        """Asks a question that is answered with y or n; anything but y, Ctrl-C and Ctrl-D mean no."""
        session: PromptSession[str] = PromptSession(output=self._output)
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return session.prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False
        finally:
            signal.signal(signal.SIGINT, previous)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._session.app.is_running:
            self._press_interrupt()
        else:
            self._pending = True

    def _deliver_pending(self) -> None:
        """Handles a Ctrl-C that came before the line could be edited; called when editing begins."""
        if self._pending:
            self._pending = False
            self._press_interrupt()

    def _press_interrupt(self) -> None:
        app = self._session.app
        assert app.loop is not None
        app.loop.call_soon_threadsafe(app.key_processor.send_sigint)

    def _interrupt(self, event: KeyPressEvent) -> None:
        if self._is_second():
            event.app.exit(exception=LeftByInterrupt(), style="class:aborting")
        elif event.current_buffer.text:
            self.cleared = True
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    def _is_second(self) -> bool:
        """Records a Ctrl-C; returns whether another came just before."""
        before, self._interrupted_at = self._interrupted_at, time.monotonic()
        return self._interrupted_at - before < TWICE

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
            elif in_open_block(buffer.text) or (self._multiline and not is_command(buffer.text)):
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @bindings.add("escape", "enter")
        @bindings.add("c-j")
        def _new_line(event: KeyPressEvent) -> None:
            if self._multiline and event.key_sequence[-1].key == Keys.ControlM:
                event.current_buffer.validate_and_handle()
            else:
                event.current_buffer.newline(copy_margin=False)

        @bindings.add(Keys.BracketedPaste)
        def _paste(event: KeyPressEvent) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            self.pasted.append(text)
            event.current_buffer.insert_text(text)

        @bindings.add("c-g")
        def _open_editor(event: KeyPressEvent) -> None:
            event.current_buffer.open_in_editor()

        return bindings


def is_command(text: str) -> bool:
    """Returns whether ``text`` is one line that may be a command, which Enter sends in every mode."""
    return text.startswith(("/", "!")) and "\n" not in text


def in_open_block(text: str) -> bool:
    """Returns whether ``text`` begins a block of lines with three quotes and has not ended it."""
    body = text.strip()
    return body.startswith(BLOCK) and not (len(body) >= 2 * len(BLOCK) and body.endswith(BLOCK))


def unfold(text: str) -> str:
    """Returns the typed message without the quotes around a block, and without the line feeds next to them."""
    body = text.strip()
    if body.startswith(BLOCK) and len(body) >= 2 * len(BLOCK) and body.endswith(BLOCK):
        return body[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text
