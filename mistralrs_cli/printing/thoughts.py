"""A model's thinking on the screen: dim, on a terminal's stderr, and nowhere else."""

from __future__ import annotations

from typing import Literal, TextIO

from mistralrs_cli.markdown_screen.answer_display import text_wrapper
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
        self._wrapper = text_wrapper(stderr) if self._is_shown else None
        self._is_open = False

    def write(self, text: str) -> None:
        """Shows further thinking."""
        if self._wrapper is not None:
            self._is_open = True
            self._show(self._wrapper.feed(escape_reordering(self._sanitizer.feed(text))))

    def end(self) -> None:
        """Parts the thinking from the answer by a blank line, if there was any."""
        if self._is_open and self._wrapper is not None:
            self._show(self._wrapper.finish())
            self._stream.write("\n\n")
            self._stream.flush()
            self._is_open = False

    def _show(self, text: str) -> None:
        from rich.console import Console

        console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        with console.capture() as drawn:
            console.print(text, style="dim", soft_wrap=True, end="")
        self._stream.write(drawn.get())
        self._stream.flush()
