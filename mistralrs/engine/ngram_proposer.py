"""Proposes draft tokens by prompt lookup: those that followed an earlier occurrence of a sequence's last tokens.

The last occurrence in the sequence itself counts, or one in a text that ended lately if more tokens before it are
equal.

Draft tokens are computed beside the last known token, which costs little; a step yields one more token for each draft
token that is accepted.
"""

from __future__ import annotations

from mistralrs.engine.acceptance import Acceptance
from mistralrs.engine.recent_texts import Match, RecentTexts, Text, equal_before

NGRAM_LENGTHS = (3, 2)
"""Lengths of the n-grams that must have occurred before, in the order in which they are tried."""
FIRST_DRAFT_TOKENS = 3
"""Tokens of the first draft. A draft that is accepted whole is followed by one of twice as many tokens and one more, a
draft that is mostly rejected by one of half as many: with the known token, steps have 2, 4, 8 or 16 tokens."""
MAX_DRAFT_TOKENS = 15
"""Tokens of a draft, at most."""
MAX_PAUSE = 64
"""Tokens without a draft after rejected ones, at most, so that a text without repetitions costs almost nothing."""
HITS_TO_RESUME = 4
"""Tokens in a row which were as they would have been proposed, after which a pause ends early."""
LONG_MATCH = 8
"""Equal tokens from which on an earlier place is probably one that the text goes on from as it did."""
FIRST_CHANCE = 0.3
"""The chance of a draft token after a shorter match, before anything is known."""
FIRST_CHANCE_AFTER_LONG = 0.85
"""The same after a long match."""


class NgramProposer:
    """Proposes draft tokens for one sequence, which may only grow."""

    __slots__ = (
        *("_cache_salt", "_current", "_expected", "_following", "_hits", "_length", "_long", "_match", "_next_end"),
        *("_pause", "_recent", "_resume", "_short", "num_accepted", "num_drafted"),
    )

    def __init__(self, recent: RecentTexts | None = None, cache_salt: str = "") -> None:
        """``recent``: texts to search beside the sequence itself, those with this ``cache_salt``."""
        self.num_drafted = 0
        """Draft tokens that were computed, a draft model's too."""
        self.num_accepted = 0
        """Draft tokens that were accepted."""
        self._short, self._long = Acceptance(FIRST_CHANCE), Acceptance(FIRST_CHANCE_AFTER_LONG)
        self._current = self._short  # that of the last match
        self._recent = recent
        self._cache_salt = cache_salt
        self._match: Match | None = None  # the place in a recent text up to which the sequence followed it
        self._expected: tuple[int, int] | None = None  # index of a token to come, and the one that would be proposed
        self._hits = 0  # tokens in a row that were expected
        self._length = FIRST_DRAFT_TOKENS
        self._pause = 0  # tokens without a draft after the last one; 0 if some of it was accepted
        self._resume = 0  # known tokens at which the pause ends
        self._following: dict[tuple[int, ...], int] = {}  # index of the token that last followed it
        self._next_end = 0  # first index after an n-gram that is not in the dictionary

    @property
    def chance(self) -> float:
        """The chance that the next of the tokens that were proposed last is accepted.

        Tokens that were not drafted count too, as they show whether they would have been right.
        """
        return self._current.chance

    def propose(self, tokens: list[int], count: int) -> tuple[int, ...]:
        """Up to ``count`` draft tokens that may follow ``tokens``, which are all known tokens; perhaps none.

        Takes microseconds for each token that was not there at the last call.
        """
        self._observe(tokens)
        self._index(tokens)
        draft = self._find(tokens, max(min(self._length, count), 1))
        self._expected = (len(tokens), draft[0]) if draft else None
        return draft[:count] if len(tokens) >= self._resume else ()

    def ended(self, tokens: list[int]) -> None:
        """Leaves the text of a sequence that ended to later ones, if it was ever searched. Idempotent."""
        if self._recent is not None and self._next_end:
            self._index(tokens)
            self._recent.add(self._cache_salt, Text(tokens, self._following))
        self._recent = None

    def _observe(self, tokens: list[int]) -> None:
        """Learns from a token that was not drafted whether it would have been right. This costs nothing."""
        if self._expected is None or len(tokens) <= self._expected[0]:
            return
        place, token = self._expected
        is_hit = tokens[place] == token
        self._current.record(1, int(is_hit))
        self._hits = self._hits + 1 if is_hit else 0
        if self._hits >= HITS_TO_RESUME:
            self._pause = self._resume = 0

    def _find(self, tokens: list[int], count: int) -> tuple[int, ...]:
        """Tokens that followed the last ones before."""
        places = (self._following.get(tuple(tokens[-length:])) for length in NGRAM_LENGTHS)
        place = next((place for place in places if place is not None), None)
        length = 0 if place is None else equal_before(tokens, place, tokens)
        if self._recent is not None:
            match = None if self._match is None else self._match.follow(tokens)
            if match is None:
                match = self._recent.find(self._cache_salt, tokens, length=NGRAM_LENGTHS[0])
            self._match = match
            if match is not None and match.length > length:
                self._current = self._long if match.length >= LONG_MATCH else self._short
                return match.draft(count)
        self._current = self._long if length >= LONG_MATCH else self._short
        return () if place is None else tuple(tokens[place : place + count])

    def record_others(self, drafted: int, accepted: int) -> None:
        """Counts draft tokens that another proposer made."""
        self.num_drafted += drafted
        self.num_accepted += accepted

    def record_acceptance(self, drafted: int, accepted: int, *, known: int) -> None:
        """Records that ``accepted`` of ``drafted`` (at least 1) draft tokens were right. ``known``: tokens known
        now."""
        self.num_drafted += drafted
        self.num_accepted += accepted
        self._current.record(drafted, accepted)
        self._expected = None
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
