"""One line on a terminal while a prompt is computed, once that takes long."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import TextIO

from mistralrs.api.read_stream import Thought
from mistralrs.engine.events import Event
from mistralrs_cli.model import AnswerStream
from mistralrs_cli.terminal.output import grouped, is_terminal

DELAY_S = 0.3
INTERVAL_S = 0.1


class ShownPrefill:
    """An answer whose prompt shows its progress on stderr until the first event, if stderr is a terminal."""

    def __init__(self, stream: AnswerStream, stderr: TextIO) -> None:
        self._stream = stream
        self._stderr = stderr
        self._is_over = threading.Event()
        self._is_shown = is_terminal(stderr) and os.environ.get("TERM") != "dumb"

    def __iter__(self) -> Iterator[Event | Thought]:
        thread = threading.Thread(target=self._show, daemon=True)
        if self._is_shown:
            thread.start()
        try:
            for event in self._stream:
                self._end(thread)
                yield event
        finally:
            self._end(thread)

    def cancel(self) -> None:
        """Ends the answer within a step; safe from any thread, and more than once."""
        self._stream.cancel()

    def prompt_progress(self) -> tuple[int, int] | None:
        """Returns the progress of the prompt."""
        return self._stream.prompt_progress()

    def _end(self, thread: threading.Thread) -> None:
        """Ends the line before anything else is written."""
        self._is_over.set()
        if thread.is_alive():
            thread.join()

    def _show(self) -> None:
        wait, shown = DELAY_S, ""
        while not self._is_over.wait(wait):
            wait = INTERVAL_S
            progress = self._stream.prompt_progress()
            if progress is None:
                continue
            line = f"reading {grouped(progress[0])}/{grouped(progress[1])} tokens"
            if line != shown:
                shown = line
                self._stderr.write(f"\r{line}\x1b[K")
                self._stderr.flush()
        if shown:
            self._stderr.write("\r\x1b[K")
            self._stderr.flush()
