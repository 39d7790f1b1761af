"""DRY ("don't repeat yourself"): penalties for tokens that would extend a repetition.

If the last tokens occurred before, the token that followed them there is penalized; the penalty grows with the length
of the repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from mistralrs.engine.config import SamplingParams

MAX_PENALTY = 1e30
"""Largest penalty; beyond it float32 could overflow."""
MAX_EXPONENT = 88.72
"""Largest natural logarithm of a power of the base; beyond it float32 would overflow."""
BREAKER_LOOKBACK = 32
"""Last tokens in which a breaker is searched first, because most breakers are that near."""


class Dry:
    """DRY with the parameters of one request."""

    def __init__(self, params: SamplingParams, spell: Callable[[int], bytes]) -> None:
        """``spell``: returns a token's bytes, for a control token those of its name."""
        self._multiplier = params.dry_multiplier
        self._base = params.dry_base
        self._allowed = params.dry_allowed_length
        self._last_n = params.dry_last_n
        self._highest = int(MAX_EXPONENT / math.log(params.dry_base)) if params.dry_base > 1 else 0
        self._breakers = tuple(breaker.encode("utf-8", "surrogatepass") for breaker in params.dry_breakers)
        self._longest = max(map(len, self._breakers), default=0)
        self._spelled = _Memo(spell)

    def penalties(self, tokens: Sequence[int]) -> dict[int, float]:
        """Penalties to subtract from logits, by token, after ``tokens``. Takes time linear in the tokens searched."""
        last_n = len(tokens) if self._last_n is None else min(self._last_n, len(tokens))
        backwards = list(tokens[len(tokens) - last_n :])[::-1]
        unbroken = self._unbroken(backwards)
        if unbroken < self._allowed:
            return {}
        lengths: dict[int, int] = {}
        for distance, length in _recurrences(backwards):
            if length >= self._allowed:
                following = backwards[distance - 1]
                lengths[following] = max(lengths.get(following, 0), min(length, unbroken))
        return {token: self._penalty(length) for token, length in lengths.items() if not self._breaks(token)}

    def _penalty(self, length: int) -> float:
        return min(self._multiplier * self._base ** min(length - self._allowed, self._highest), MAX_PENALTY)

    def _breaks(self, token: int) -> bool:
        return any(breaker in self._spelled[token] for breaker in self._breakers)

    def _unbroken(self, backwards: list[int]) -> int:
        """Number of last tokens that lie wholly after the last breaker; all of them if there is no breaker."""
        if not self._breakers:
            return len(backwards)
        look = BREAKER_LOOKBACK
        while True:
            pieces = [self._spelled[token] for token in backwards[:look]]
            text = b"".join(reversed(pieces))
            end = max(text.rfind(breaker) + len(breaker) if breaker in text else 0 for breaker in self._breakers)
            # A breaker that begins before this text would end before ``end``.
            if look >= len(backwards) or end >= self._longest:
                break
            look *= 8
        count, left = 0, len(text) - end
        while count < len(pieces) and len(pieces[count]) <= left:
            left -= len(pieces[count])
            count += 1
        return count


class _Memo(dict[int, bytes]):
    """Bytes of tokens, each computed once."""

    def __init__(self, spell: Callable[[int], bytes]) -> None:
        super().__init__()
        self._spell = spell

    def __missing__(self, token: int) -> bytes:
        self[token] = self._spell(token)
        return self[token]


def _recurrences(items: list[int]) -> list[tuple[int, int]]:
    """All (distance, length) where ``items`` from ``distance`` on start with the same ``length`` items as ``items``.

    This is the Z algorithm: it reuses the match that reaches furthest instead of comparing its items again.
    """
    found: list[tuple[int, int]] = []
    lengths = [0] * len(items)
    start = end = 0  # the match that reaches furthest
    distance = 1
    while distance < len(items):
        if distance >= end:
            try:
                distance = items.index(items[0], distance)
            except ValueError:
                break
        length = min(lengths[distance - start], end - distance) if distance < end else 0
        while distance + length < len(items) and items[length] == items[distance + length]:
            length += 1
        if length:
            found.append((distance, length))
            lengths[distance] = length
            if distance + length > end:
                start, end = distance, distance + length
        distance += 1
    return found
