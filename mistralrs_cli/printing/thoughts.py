"""A model's thinking on the screen: dim, on a terminal's stderr, and nowhere else."""

from __future__ import annotations

import os
import time
from typing import Literal, TextIO

from mistralrs_cli.markdown_screen.answer_display import text_wrapper
from mistralrs_cli.printing.prefill_line import INTERVAL_S
from mistralrs_cli.terminal.output import Sanitizer, escape_reordering, grouped, is_terminal

Think = Literal["on", "off", "hide"]
"""Whether a model thinks, and whether that is shown."""


def thinking_of(think: Think | None) -> bool | None:
    """Returns whether the model is asked to think; None: its template decides."""
    return None if think in (None, "hide") else think == "on"


class Thoughts:
    """Writes the thinking of one answer, which may hold any character."""

    def __init__(self, stderr: TextIO, *, shown: bool, summed: bool = False) -> None:
        """``shown``: on a terminal. Elsewhere thinking is never written. ``summed``: where it is not shown, a line says
        how long it takes and then how long it took."""
        self._stream = stderr
        self._is_shown = shown and is_terminal(stderr)
        self._is_summed = summed and not shown and is_terminal(stderr)
        self._is_live = self._is_summed and os.environ.get("TERM") != "dumb"
        self._begun: float | None = None
        self._last_shown: float | None = None
        self._tokens = 0
        self._sanitizer = Sanitizer()
        self._wrapper = text_wrapper(stderr) if self._is_shown else None
        self._is_open = False

    def write(self, text: str) -> None:
        """Shows further thinking."""
        if self._begun is None:
            self._begun = time.monotonic()
        if self._wrapper is not None:
            self._is_open = True
            self._show(self._wrapper.feed(escape_reordering(self._sanitizer.feed(text))))
        self._show_progress()

    def count(self, tokens: int) -> None:
        """Counts tokens that gave no text of the answer; those of a server are not known."""
        self._tokens += tokens
        self._show_progress()

    def end(self) -> None:
        """Parts the thinking from the answer by a blank line, or sums it up, if there was any."""
        self._is_live = False  # behind text of an answer a line that is written over would take some of it along
        if self._last_shown is not None:
            self._stream.write("\r\x1b[K")
            self._last_shown = None
        if self._is_summed and self._begun is not None:
            self._show(f"thought for {self._sum(self._begun)}\n")
            self._begun = None
        if self._is_open and self._wrapper is not None:
            self._show(self._wrapper.finish())
            self._stream.write("\n\n")
            self._stream.flush()
            self._is_open = False

    def _show_progress(self) -> None:
        """Shows the line of a thinking that is under way, not more often than a reader sees."""
        now = time.monotonic()
        if not self._is_live or self._begun is None or now - (self._last_shown or 0) < INTERVAL_S:
            return
        self._last_shown = now
        self._stream.write("\r")
        self._show(f"thinking for {self._sum(self._begun)}")
        self._stream.write("\x1b[K")
        self._stream.flush()

    def _sum(self, begun: float) -> str:
        counted = f" ({grouped(self._tokens)} tokens)" if self._tokens else ""
        return f"{time.monotonic() - begun:.1f} s{counted}"

    def _show(self, text: str) -> None:
        from rich.console import Console

        console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        with console.capture() as drawn:
            console.print(text, style="dim", soft_wrap=True, end="")
        self._stream.write(drawn.get())
        self._stream.flush()
