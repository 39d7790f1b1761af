"""Proposes draft tokens by prompt lookup: those that followed the last occurrence of a sequence's last tokens.

Draft tokens are computed beside the last known token, which costs little; a step yields one more token for each draft
token that is accepted.
"""

from __future__ import annotations

NGRAM_LENGTHS = (3, 2)
"""Lengths of the n-grams that must have occurred before, in the order in which they are tried."""
FIRST_DRAFT_TOKENS = 3
"""Tokens of the first draft. A draft that is accepted whole is followed by one of twice as many tokens and one more, a
draft that is mostly rejected by one of half as many: with the known token, steps have 2, 4, 8 or 16 tokens."""
MAX_DRAFT_TOKENS = 15
"""Tokens of a draft, at most."""
MAX_PAUSE = 64
"""Tokens without a draft after rejected ones, at most, so that a text without repetitions costs almost nothing."""


class NgramProposer:
    """Proposes draft tokens for one sequence, which may only grow."""

    __slots__ = ("_following", "_length", "_next_end", "_pause", "_resume", "num_accepted", "num_drafted")

    def __init__(self) -> None:
        self.num_drafted = 0
        """Draft tokens that were computed."""
        self.num_accepted = 0
        """Draft tokens that were accepted."""
        self._length = FIRST_DRAFT_TOKENS
        self._pause = 0  # tokens without a draft after the last one; 0 if some of it was accepted
        self._resume = 0  # known tokens at which the pause ends
        self._following: dict[tuple[int, ...], int] = {}  # index of the token that last followed it
        self._next_end = 0  # first index after an n-gram that is not in the dictionary

    def propose(self, tokens: list[int], count: int) -> tuple[int, ...]:
        """Up to ``count`` draft tokens that may follow ``tokens``, which are all known tokens; perhaps none.

        Takes microseconds for each token that was not there at the last call.
        """
        if len(tokens) < self._resume:
            return ()
        self._index(tokens)
        for length in NGRAM_LENGTHS:
            place = self._following.get(tuple(tokens[-length:]))
            if place is not None:
                return tuple(tokens[place : place + min(self._length, count)])
        return ()

    def record_acceptance(self, drafted: int, accepted: int, *, known: int) -> None:
        """Records that ``accepted`` of ``drafted`` (at least 1) draft tokens were right. ``known``: tokens known
        now."""
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
        """Adds all n-grams that a token follows; those at the end of ``tokens`` have none yet."""
        for length in NGRAM_LENGTHS:
            end = max(self._next_end, length)
            part = tokens[end - length : -1]
            occurrences = zip(*(part[offset:] for offset in range(length)), strict=False)
            self._following.update(zip(occurrences, range(end, len(tokens)), strict=True))
        self._next_end = len(tokens)
