"""Finds the first fenced code block of a Markdown text that comes in pieces."""

from __future__ import annotations

import re

_OPENING = re.compile(r"([ \t]*)(?:(`{3,})[^`]*|(~{3,}).*)")


class FirstCodeBlock:
    """The code of a text's first block, line by line and without the fences.

    A block may be indented, as in a list; its lines lose as much white space at their beginning. A text that ends
    within the block ends the block.
    """

    def __init__(self) -> None:
        self.found = False
        """The block has begun."""
        self.closed = False
        """The block is complete; later text is not looked at."""
        self._rest = ""
        self._indentation = 0
        self._fence = ""

    def feed(self, text: str) -> str:
        """Returns the lines of code that ``text`` completes."""
        if self.closed:
            return ""
        *lines, self._rest = (self._rest + text).split("\n")
        return "".join(self._take(line, "\n") for line in lines)

    def finish(self) -> str:
        """Returns the code that is left at the end of the text: a line without its line feed."""
        rest, self._rest = self._rest, ""
        return self._take(rest, "")

    def _take(self, line: str, ending: str) -> str:
        if self.closed:
            return ""
        bare = line.rstrip("\r")
        if not self.found:
            opening = _OPENING.fullmatch(bare)
            if opening is not None:
                self.found = True
                self._indentation = len(opening[1])
                self._fence = opening[2] or opening[3]
            return ""
        if self._closes(bare.strip(" \t")):
            self.closed = True
            return ""
        indentation = len(line) - len(line.lstrip(" \t"))
        return line[min(indentation, self._indentation) :] + ending

    def _closes(self, text: str) -> bool:
        return len(text) >= len(self._fence) and text == self._fence[0] * len(text)
