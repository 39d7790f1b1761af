"""Finds control tokens that a text spells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from mistralrs.text.stream import partial_suffix


class ControlTexts:
    """The texts of a vocabulary's control tokens, and whether whitespace before and after belongs to each."""

    def __init__(self, texts: Mapping[str, tuple[bool, bool]]) -> None:
        self._texts = texts

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Ranges of the control tokens that a tokenizer finds: leftmost first, then longest, without overlaps."""
        position = 0
        for start in self.starts(text):
            if start < position:
                continue
            spelling = next(s for s in self._spellings(text, start))
            take_left, take_right = self._texts[spelling]
            first, end = start, start + len(spelling)
            while take_left and first > position and text[first - 1].isspace():
                first -= 1
            while take_right and end < len(text) and text[end].isspace():
                end += 1
            yield first, end
            position = end

    def starts(self, text: str) -> Iterator[int]:
        """All positions at which a control token is spelled, ascending, with overlaps."""
        if self._texts:
            for match in self._first.finditer(text):
                if any(self._spellings(text, match.start())):
                    yield match.start()

    def unfinished(self, text: str) -> int | None:
        """The position at the text's end (without whitespace) from which more text could complete a control token."""
        stripped = text.rstrip()
        tail = stripped[-self._lengths[0] :] if self._texts else ""
        if not tail or not self._first.search(tail):
            return None
        return len(stripped) - length if (length := partial_suffix(tail, self._texts)) else None

    def _spellings(self, text: str, start: int) -> Iterator[str]:
        for length in self._lengths:
            if (spelling := text[start : start + length]) in self._texts:
                yield spelling

    @cached_property
    def _lengths(self) -> list[int]:
        return sorted(set(map(len, self._texts)), reverse=True)

    @cached_property
    def _first(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(first) for first in {text[0] for text in self._texts}))
