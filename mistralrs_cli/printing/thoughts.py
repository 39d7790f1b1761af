"""A model's thinking on the screen: dim, on a terminal's stderr, and nowhere else."""

from __future__ import annotations

from typing import Literal, TextIO

from mistralrs_cli.terminal.output import Sanitizer, escape_reordering, is_terminal

Think = Literal["on", "off", "hide"]
"""Whether a model thinks, and whether that is shown."""


def thinking_of(think: Think | None) -> bool | None:
    """Returns whether the model is asked to think; None: its template decides."""
    return None if think in (None, "hide") else think == "on"


class Thoughts:
    """Writes the thinking of one answer, which may hold any character."""

    def __init__(self, stderr: TextIO, *, shown: bool) -> None:
        """``shown``: on a terminal. Elsewhere thinking is never written."""
        self._stream = stderr
        self._is_shown = shown and is_terminal(stderr)
        self._sanitizer = Sanitizer()
        self._is_open = False

    def write(self, text: str) -> None:
        """Shows further thinking."""
        if not self._is_shown:
            return
        from rich.console import Console

        self._is_open = True
        console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        with console.capture() as drawn:
            console.print(escape_reordering(self._sanitizer.feed(text)), style="dim", soft_wrap=True, end="")
        self._stream.write(drawn.get())
        self._stream.flush()

    def end(self) -> None:
        """Parts the thinking from the answer by a blank line, if there was any."""
        if self._is_open:
            self._stream.write("\n\n")
            self._stream.flush()
            self._is_open = False
