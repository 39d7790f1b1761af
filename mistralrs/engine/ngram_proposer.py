"""Guesses at the next tokens of a sequence: what followed the last time that it went as it goes now.

A guess is computed beside the last known token, which costs little; where it is right, a step yields more tokens than
one. Knows token ids; no sequence, no blocks and no tensor.
"""

from __future__ import annotations

NGRAM_LENGTHS = (3, 2)
"""Last tokens that must have occurred before, in the order in which they are looked for."""
FIRST_DRAFT_TOKENS = 3
"""Tokens of the first guess. Twice as many and one more come after one that was all right, half as many after one that
was mostly wrong: with the known token, steps have 2, 4, 8 or 16 rows."""
MAX_DRAFT_TOKENS = 15
"""Tokens of a guess."""
MAX_PAUSE = 64
"""Tokens without a guess after wrong ones, at most, so that a text without repetitions costs next to nothing."""


class NgramProposer:
    """Guesses for one sequence, whose tokens may only become more."""

    __slots__ = ("_behind", "_length", "_next_end", "_pause", "_resume", "num_accepted", "num_drafted")

    def __init__(self) -> None:
        self.num_drafted = 0
        """Tokens that were guessed and computed."""
        self.num_accepted = 0
        """Those of them that were right."""
        self._length = FIRST_DRAFT_TOKENS
        self._pause = 0  # tokens without a guess after the last one; 0 if something of it was right
        self._resume = 0  # known tokens at which the pause ends
        self._behind: dict[tuple[int, ...], int] = {}  # the place behind the last occurrence that has one
        self._next_end = 0  # first place behind an occurrence that was not looked at

    def propose(self, tokens: list[int], count: int) -> tuple[int, ...]:
        """Up to ``count`` tokens that may follow ``tokens``, all that are known; perhaps none.

        Takes microseconds for each token that is new to it.
        """
        if len(tokens) < self._resume:
            return ()
        self._index(tokens)
        for length in NGRAM_LENGTHS:
            place = self._behind.get(tuple(tokens[-length:]))
            if place is not None:
                return tuple(tokens[place : place + min(self._length, count)])
        return ()

    def record_acceptance(self, drafted: int, accepted: int, *, known: int) -> None:
        """Takes note that ``accepted`` of ``drafted`` tokens, at least one, were right. ``known``: tokens known now."""
        self.num_drafted += drafted
        self.num_accepted += accepted
        if accepted == drafted:
            self._length = min(2 * self._length + 1, MAX_DRAFT_TOKENS)
        elif 2 * accepted < drafted:
            self._length = max(self._length // 2, 1)
        if accepted:
            self._pause = 0
        else:
            self._pause = min(max(2 * self._pause, 1), MAX_PAUSE)
            self._resume = known + self._pause

    def _index(self, tokens: list[int]) -> None:
        """Takes note of all that something follows; what the tokens end with is not among it."""
        for length in NGRAM_LENGTHS:
            end = max(self._next_end, length)
            part = tokens[end - length : -1]
            occurrences = zip(*(part[offset:] for offset in range(length)), strict=False)
            self._behind.update(zip(occurrences, range(end, len(tokens)), strict=True))
        self._next_end = len(tokens)
