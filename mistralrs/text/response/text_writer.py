"""The text of one part of an answer, from the regions that it is written in."""

from __future__ import annotations


class TextWriter:
    """Joins a part's regions, without the space around each if it strips.

    With a ``join`` this text is between two regions, also empty ones. Without one, the space that the model wrote at
    their borders is, or else a line's end.
    """

    def __init__(self, *, strips: bool = True, join: str | None = None, begins_with_join: bool = False) -> None:
        self._strips = strips
        self._join = join
        self._regions = 1 if begins_with_join else 0
        """Regions so far, the open one not counted."""
        self._is_open = False
        self._has_text = False
        """Whether the open region has text that was passed on."""
        self._wrote = False
        self._space = ""
        """Space that is passed on if text follows."""

    def open(self) -> None:
        """Begins a region, which may have no text."""
        self._is_open = True

    def write(self, text: str) -> str:
        """Further text of the open region, which it opens if none is; returns the text to pass on."""
        self._is_open = True
        if not self._strips:
            return self._begin() + text if text else ""
        if not self._has_text:
            kept = text.lstrip()
            if self._join is None:
                self._space += text[: len(text) - len(kept)] if self._wrote else ""
            text = kept
            if not text:
                return ""
        kept = text.rstrip()
        if not kept:
            self._space += text
            return ""
        written = self._begin() + self._space + kept
        self._space = text[len(kept) :]
        return written

    def end(self) -> str:
        """Ends the region; returns the text to pass on."""
        if not self._is_open:
            return ""
        written = ""
        if self._join is not None:
            if not self._has_text:
                written = self._begin()
            self._space = ""
        self._regions += 1
        self._is_open = self._has_text = False
        return written

    def _begin(self) -> str:
        """The text before the first one of a region."""
        if self._has_text:
            return ""
        self._has_text = True
        if self._join is not None:
            return self._join if self._regions else ""
        glued = self._wrote and self._strips and not self._space
        self._wrote = True
        return "\n" if glued else ""
