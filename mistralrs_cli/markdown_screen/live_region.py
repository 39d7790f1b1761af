"""The lower part of a terminal: lines that are final, and below them the lines that may still change."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TextIO

import regex

from mistralrs_cli.markdown_screen.word_wrap import TAB, cluster_width

_TOKENS = regex.compile(r"\x1b\[[0-9;]*m|\x1b\]8;;[^\x1b]*\x1b\\|\X")
_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;;[^\x1b]*\x1b\\")
RESET = "\x1b[0m"
UNLINK = "\x1b]8;;\x1b\\"

Size = Callable[[], tuple[int, int]]
"""Returns the columns and the lines of the terminal."""


class LiveRegion:
    """Draws in one write what differs. A line that is final, or above the screen, is never written again."""

    def __init__(self, stream: TextIO, size: Size) -> None:
        self._stream, self._size = stream, size
        self._shown: list[str] = []
        """The open lines on the screen. The cursor is behind the last of them."""
        self._is_behind_line = False
        """No open line is shown, and the cursor is behind a final one."""
        self._columns = size()[0]

    def draw(self, final: Sequence[str], open_lines: Sequence[str]) -> None:
        """Writes further final lines, and the last ``open_lines`` as far as they fit on the screen."""
        columns, height = self._size()
        room = max(1, height - 1)
        new = [*final, *[clipped(line, columns - 1) for line in open_lines[-room:]]]
        old = self._shown[-room:] if columns == self._columns else []
        output = self._to_begin(columns, room)
        same = 0
        if output is None:
            same = _common(old, new)
            output = self._change(old, new, same)
        if new or old:
            self._is_behind_line = bool(new) and not open_lines
        output += "\n".join(new[same:]) if same < len(new) else ""
        self._columns = columns
        self._shown = new[len(final) :]
        if output:
            self._stream.write(output)
            self._stream.flush()

    def _to_begin(self, columns: int, room: int) -> str | None:
        """Returns the output that clears the open lines after the terminal's width has changed; None: it has not.

        A terminal may have wrapped them anew. Only lines that are surely theirs are cleared.
        """
        if columns == self._columns:
            return None
        rows = min(len(self._shown), room)
        return _up(rows - 1) + "\x1b[J" if rows else ("\n" if self._is_behind_line else "")

    def _change(self, old: Sequence[str], new: Sequence[str], same: int) -> str:
        """Returns the output that moves to the first different line and clears what is there."""
        if not old:
            return "\n" if self._is_behind_line and new else ""
        if same == len(old):
            return "\n" if same < len(new) else ""
        return _up(len(old) - 1 - same) + "\x1b[J"


def _common(old: Sequence[str], new: Sequence[str]) -> int:
    """Returns the number of equal lines at the beginning; one less than ``new`` where the cursor has to go back."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return same - 1 if 0 < same == len(new) < len(old) else same


def _up(lines: int) -> str:
    return "\r" + (f"\x1b[{lines}A" if lines else "")


def clipped(line: str, width: int) -> str:
    """Returns the beginning of a styled line that fits into ``width`` cells; tabs become spaces."""
    line = line.replace("\t", TAB)
    bare = _SEQUENCE.sub("", line)
    if bare.isascii() and len(bare) <= width:
        return line
    used = 0
    kept: list[str] = []
    for token in _TOKENS.findall(line):
        if not token.startswith("\x1b"):
            used += cluster_width(token)
            if used > width:
                return "".join(kept) + (RESET if "\x1b[" in line else "") + (UNLINK if "\x1b]" in line else "")
        kept.append(token)
    return line
