"""Proposes draft tokens by prompt lookup: those that followed an earlier occurrence of a sequence's last tokens.

The last occurrence in the sequence itself counts, or one in a text that ended lately if more tokens before it are
equal. A place that was copied from for a while is kept where single words of it are changed, and beside another one
where more tokens are equal, until one of them is wrong.

Draft tokens are computed beside the last known token, which costs little; a step yields one more token for each draft
token that is accepted.
"""

from __future__ import annotations

from collections.abc import Callable

from mistralrs.engine.acceptance import Acceptance
from mistralrs.engine.copy_source import CopySource, WordPart, no_words
from mistralrs.engine.recent_texts import RecentTexts, Text, equal_before

NGRAM_LENGTHS = (3, 2)
"""Lengths of the n-grams that must have occurred before, in the order in which they are tried."""
MAX_DRAFT_TOKENS = 15
"""Tokens of a draft, at most."""
FIRST_BALANCE, MAX_BALANCE, BALANCE_SHARE = 0.3, 8.0, 0.005
"""Steps that a sequence's draft tokens may lose at first and at most, and those that each step adds."""
LONG_MATCH = 16
"""Equal tokens from which on no other place is looked for."""

FRESH, COPIED, CHANGED, LATER, CHANGED_FRESH, SPLIT = 0, 4, 8, 9, 10, 11
"""Kinds of draft tokens. Four each after 0 to 3, 4 to 7, 8 to 15 and more equal tokens, where little was copied before
and where much was. First behind a change, in its place: of one token after much, of more, of one after little. First of
a word of several tokens, where much was copied: such words are rare or misspelled, and are changed more often."""
FIRST_CHANCES = (0.2, 0.5, 0.7, 0.9, 0.85, 0.85, 0.9, 0.95, 0.5, 0.02, 0.2, 0.5)
"""The chance of a draft token of each kind to be right, if those before it are, before anything is known."""
_AFTER = [min(length.bit_length() - 2, 3) if length > 3 else 0 for length in range(LONG_MATCH + MAX_DRAFT_TOKENS)]
"""The place of a kind among its four, by the equal tokens before."""


class NgramProposer:
    """Proposes draft tokens for one sequence, which may only grow."""

    __slots__ = (
        *(
            "_cache_salt",
            "_chances",
            "_earlier",
            "_following",
            "_kinds",
            "_known",
            "_next_end",
            "_part",
            "_proposed",
            "_recent",
            "_source",
        ),
        *("balance", "num_accepted", "num_drafted"),
    )

    def __init__(
        self, recent: RecentTexts | None = None, cache_salt: str = "", *, part: Callable[[int], WordPart] = no_words
    ) -> None:
        """``recent``: texts to search beside the sequence itself, those with this ``cache_salt``. ``part``: the part of
        a word that a token spells."""
        self.num_drafted = 0
        """Draft tokens that were computed, a draft model's too."""
        self.num_accepted = 0
        """Draft tokens that were accepted."""
        self.balance = FIRST_BALANCE
        """Steps without draft tokens that may be lost: those that draft tokens saved, less those that they took."""
        self._part = part
        self._recent = recent
        self._cache_salt = cache_salt
        self._chances = [Acceptance(first) for first in FIRST_CHANCES]
        self._source: CopySource | None = None  # the place that the last proposal came from
        self._earlier: CopySource | None = None  # a place that was copied from before this one was found
        self._known = 0  # tokens that both have taken
        self._proposed: tuple[int, ...] = ()  # the last proposal, behind these tokens
        self._kinds: list[int] = []  # the kind of each of its tokens
        self._following: dict[tuple[int, ...], int] = {}  # index of the token that last followed it
        self._next_end = 0  # first index after an n-gram that is not in the dictionary

    def chances(self) -> tuple[float, ...]:
        """The chance of each token that was proposed last to be right if those before it are.

        Tokens that were not computed count too, as the answer shows whether they would have been right.
        """
        chances = self._chances
        return tuple([chances[kind].chance for kind in self._kinds])

    def propose(self, tokens: list[int], count: int) -> tuple[int, ...]:
        """Up to ``count`` draft tokens that may follow ``tokens``, which are all known tokens; perhaps none.

        Takes microseconds for each token that was not there at the last call.
        """
        self._observe(tokens)
        self._follow(tokens)
        self._index(tokens)
        if self._source is None or self._source.length < LONG_MATCH:
            self._search(tokens)
        if self._source is not None:
            self._proposed = self._source.draft(tokens, min(count, MAX_DRAFT_TOKENS))
            self._kinds = _kinds(self._source, self._proposed, self._part)
        return self._proposed

    def ended(self, tokens: list[int]) -> None:
        """Leaves the text of a sequence that ended to later ones, if it was ever searched. Idempotent."""
        if self._recent is not None and self._next_end:
            self._index(tokens)
            self._recent.add(self._cache_salt, Text(tokens, self._following))
        self._recent = None

    def record_acceptance(self, drafted: int, accepted: int) -> None:
        """Counts ``accepted`` of ``drafted`` draft tokens that were right."""
        self.num_drafted += drafted
        self.num_accepted += accepted
        self.balance += accepted

    def settle(self, cost: float) -> None:
        """Records a step of the sequence, whose draft tokens took as long as ``cost`` steps without any."""
        self.balance = min(self.balance + BALANCE_SHARE - cost, MAX_BALANCE)

    def _observe(self, tokens: list[int]) -> None:
        """Learns from the new tokens which of the proposed ones were right, or would have been."""
        for kind, proposed, token in zip(self._kinds, self._proposed, tokens[self._known :], strict=False):
            self._chances[kind].record(1, int(proposed == token))
            if proposed != token:
                break
        self._proposed, self._kinds = (), []

    def _follow(self, tokens: list[int]) -> None:
        """Brings the places up to the known tokens, and takes the earlier one again if it was right where the other was
        not."""
        source, earlier = self._followed(self._source, tokens), self._followed(self._earlier, tokens)
        if earlier is not None and (source is None or earlier.length > source.length):
            source, earlier = earlier, source
        if (
            source is not None
            and earlier is not None
            and (source.text is earlier.text and source.place == earlier.place)
        ):
            earlier = None
        self._source, self._earlier = source, earlier
        self._known = len(tokens)

    def _followed(self, source: CopySource | None, tokens: list[int]) -> CopySource | None:
        """A place brought up to the known tokens; None: there is none, or it was lost."""
        return source if source is not None and source.follow(tokens, self._known, self._part) else None

    def _search(self, tokens: list[int]) -> None:
        """Takes another place if more tokens before it are equal: a whole n-gram in place of one that was copied."""
        source, known = self._source, 0 if self._source is None else self._source.length
        least = NGRAM_LENGTHS[-1] if source is None else max(known + 1, NGRAM_LENGTHS[0])
        place, found = None, None
        for length in NGRAM_LENGTHS:
            place = self._following.get(tuple(tokens[-length:]))
            if place is not None:
                break
        if place is not None and not (source is not None and source.text is None and source.place == place):
            length = equal_before(tokens, place, tokens)
            if length >= least:
                found, least = CopySource(None, place, length, copied=length), length + 1
        if self._recent is not None:
            match = self._recent.find(self._cache_salt, tokens, length=NGRAM_LENGTHS[0])
            if match is not None and match.length >= least and match.place < len(match.text.tokens):
                found = CopySource(match.text.tokens, match.place, match.length, copied=match.length)
        if found is not None:
            self._replace(found)

    def _replace(self, found: CopySource) -> None:
        """Takes a place that was found, and keeps beside it the one that most was copied from."""
        source, earlier = self._source, self._earlier
        if source is not None and source.is_copied and (earlier is None or source.copied >= earlier.copied):
            self._earlier = source
        self._source = found

    def _index(self, tokens: list[int]) -> None:
        """Adds all n-grams that a token follows; those at the end of ``tokens`` have none yet."""
        known = len(tokens)
        if known == self._next_end + 1 and known > NGRAM_LENGTHS[0]:  # the usual case, in few instructions
            for length in NGRAM_LENGTHS:
                self._following[tuple(tokens[-length - 1 : -1])] = known - 1
        else:
            for length in NGRAM_LENGTHS:
                end = max(self._next_end, length)
                part = tokens[end - length : -1]
                occurrences = zip(*(part[offset:] for offset in range(length)), strict=False)
                self._following.update(zip(occurrences, range(end, known), strict=True))
        self._next_end = known


def _kinds(source: CopySource, proposed: tuple[int, ...], part: Callable[[int], WordPart]) -> list[int]:
    """The kind of each of the tokens of a text that are proposed."""
    start, group = min(source.length, LONG_MATCH), COPIED if source.is_copied else FRESH
    kinds = [group + place for place in _AFTER[start : start + len(proposed)]]
    if source.is_copied:
        parts = [part(token) for token in proposed]
        for place in range(len(parts) - 1):
            if parts[place + 1] is WordPart.REST and parts[place] is WordPart.START:
                kinds[place] = SPLIT
    if source.length == 0:
        kinds[:1] = [LATER if source.changed > 1 else CHANGED if source.is_copied else CHANGED_FRESH]
    return kinds
