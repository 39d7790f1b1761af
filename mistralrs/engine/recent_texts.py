"""Texts of sequences that ended, in which later sequences look for what may follow.

A text is kept with the index that its sequence made of it, so that keeping it costs nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MAX_TOKENS = 1 << 16
"""Tokens of all texts together; each takes about 400 bytes."""
MAX_TEXTS = 64
MAX_COMPARED = 64
"""Tokens up to which two beginnings are compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """The tokens of a sequence, and the index of the token that last followed each n-gram."""

    tokens: list[int]
    following: dict[tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Match:
    """A place in a text before which the last tokens of a sequence stand."""

    text: Text
    place: int
    """The index of the token that may follow."""
    length: int
    """Tokens before it that are equal."""


class RecentTexts:
    """The newest texts, apart for each cache salt. The engine's thread alone uses it."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self.num_tokens = 0
        """Tokens of all texts."""
        self._max_tokens = max_tokens
        self._texts: deque[tuple[str, Text]] = deque()  # oldest first

    def add(self, cache_salt: str, text: Text) -> None:
        """Keeps a text in place of those that it continues, and drops the oldest ones beyond the limits."""
        size = len(text.tokens)
        if size > self._max_tokens:
            return
        for kept in [each for each in self._texts if each[0] == cache_salt]:
            if text.tokens[: len(kept[1].tokens)] == kept[1].tokens:
                self._texts.remove(kept)
                self.num_tokens -= len(kept[1].tokens)
        self._texts.append((cache_salt, text))
        self.num_tokens += size
        while self.num_tokens > self._max_tokens or len(self._texts) > MAX_TEXTS:
            self.num_tokens -= len(self._texts.popleft()[1].tokens)

    def find(self, cache_salt: str, tokens: list[int], *, length: int) -> Match | None:
        """The place that most of the last tokens precede, at least ``length`` of them; the newest of equal ones."""
        key, best = tuple(tokens[-length:]), None
        for salt, text in reversed(self._texts):
            place = text.following.get(key) if salt == cache_salt else None
            if place is not None:
                equal = equal_before(text.tokens, place, tokens)
                if best is None or equal > best.length:
                    best = Match(text, place, equal)
        return best


def equal_before(text: list[int], place: int, tokens: list[int]) -> int:
    """How many tokens before ``place`` equal the last ones of ``tokens``, counted up to ``MAX_COMPARED``."""
    most = min(place, len(tokens), MAX_COMPARED)
    for count in range(most):
        if text[place - 1 - count] != tokens[-1 - count]:
            return count
    return most
