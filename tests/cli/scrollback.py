"""A screen with its scrollback, on which an answer is drawn, and CommonMark's examples to draw."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyte

from mistralrs_cli.markdown_screen.answer_display import MarkdownWriter, Pace

COMMONMARK = Path(
    os.environ.get("MISTRALRS_TEST_COMMONMARK", Path(__file__).parents[2] / ".fixtures" / "commonmark")
).joinpath("commonmark.json")
SIZES = ((80, 24), (120, 40), (40, 20))
"""Columns and lines."""
_USED = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\d+A|\x1b\[J|\x1b\]8;;[^\x1b]*\x1b\\")
"""The sequences that an answer is drawn with: styles, moves up, clearing from the cursor on, links."""


_WIDEST = 250
"""Columns that no terminal of the tests exceeds."""


class Rewritten(AssertionError):
    """A line that had left the screen was to be written again."""


class Scrollback(pyte.HistoryScreen):  # type: ignore[misc]  # pyte has no types
    """A screen that refuses moves above its first line."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines, history=100_000)
        self.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self)

    def cursor_up(self, count: int | None = None) -> None:
        if (count or 1) > self.cursor.y:
            raise Rewritten(f"a move {count} lines up from line {self.cursor.y}")
        super().cursor_up(count)

    def feed(self, output: str) -> None:
        """Draws output that has no other sequences than those of an answer."""
        if "\x1b" in _USED.sub("", output):
            raise Rewritten(f"an unknown sequence in {output!r}")
        self._stream.feed(output)

    def above(self) -> list[str]:
        """Returns the lines that have left the screen."""
        return [self._line(row) for row in self.history.top]

    def text(self) -> list[str]:
        """Returns all lines, without empty ones at the end."""
        on_screen = [self._line(self.buffer[place]) for place in range(self.lines)]
        return "\n".join([*self.above(), *on_screen]).rstrip().split("\n")

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        """Gives the screen another size, as a terminal that wraps nothing anew and keeps the line of the cursor."""
        assert lines is not None
        assert columns is not None
        place, column = self.cursor.y, min(self.cursor.x, columns - 1)
        leaving = max(0, place - (lines - 1))
        self.cursor.y = self.lines - 1
        for _ in range(leaving):
            self.index()
        self.lines, self.columns = lines, columns
        self.cursor.y, self.cursor.x = place - leaving, column

    def _line(self, row: Any) -> str:
        return "".join(row[place].data for place in range(_WIDEST)).rstrip()


class ScreenFile(io.StringIO):
    """A text stream whose reader is a screen."""

    def __init__(self, screen: Scrollback) -> None:
        super().__init__()
        self._screen = screen
        self._above: list[str] = []

    def write(self, text: str) -> int:
        """Draws the text. Raises ``Rewritten`` if a line in the scrollback changed."""
        self._screen.feed(text)
        if len(self._screen.history.top) != len(self._above):
            before, self._above = self._above, self._screen.above()
            if self._above[: len(before)] != before:
                raise Rewritten(f"the scrollback {before!r} became {self._above!r}")
        return len(text)


class RandomPace(Pace):
    """Lets a piece be drawn at random, as a busy machine does; None: each."""

    def __init__(self, random: Random | None) -> None:
        super().__init__()
        self._random = random
        self._share = 1.0 if random is None else random.choice((1.0, 0.5))

    def allows(self) -> bool:
        """Returns whether something may be drawn now."""
        return self._random is None or self._random.random() < self._share


def shown(
    pieces: Iterable[str],
    *,
    columns: int,
    lines: int,
    random: Random | None = None,
    sizes: Sequence[tuple[int, int]] = (),
) -> list[str]:
    """Returns the lines of an answer that came in pieces, scrollback included. ``random`` leaves out some of the
    drawing. ``sizes``: the terminal gets one of these now and then.

    Raises ``Rewritten`` if a line in the scrollback changed.
    """
    screen = Scrollback(columns, lines)
    writer = MarkdownWriter(
        ScreenFile(screen),
        theme="dark",
        has_links=False,
        pace=RandomPace(random),
        size=lambda: (screen.columns, screen.lines),
    )
    for piece in pieces:
        if sizes and random is not None and random.random() < 0.1:
            new_columns, new_lines = random.choice(sizes)
            screen.resize(new_lines, new_columns)
        writer.write(piece)
    writer.end()
    return screen.text()


def chunked(random: Random, text: str) -> list[str]:
    """Returns the text in pieces of random sizes, those of one answer short or long."""
    longest = random.choice((1, 4, 12, 40))
    pieces = []
    while text:
        size = random.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def commonmark_examples() -> list[dict[str, Any]]:
    """Returns the examples of the specification: ``markdown``, ``html``, ``example`` (its number) and ``section``."""
    found: list[dict[str, Any]] = json.loads(COMMONMARK.read_text(encoding="utf-8"))
    return found
