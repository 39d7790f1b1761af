"""How much of prompts a step may compute beside running streams. Knows rates; no sequence and no clock."""

from __future__ import annotations


class PrefillBudget:
    """How many prefill tokens a step may hold so that streams beside it wait about a quarter of a second."""

    SECONDS = 0.25
    LEAST = 16
    """Smaller chunks cost a whole pass over the weights for next to nothing."""
    WEIGHT = 0.3
    """Of the newest measurement in the exponential average."""

    def __init__(self) -> None:
        self._rate: float | None = None  # tokens a second

    def limit(self, max_batch_tokens: int) -> int:
        """Tokens that the measured rate allows; all of them before the first measurement."""
        if self._rate is None:
            return max_batch_tokens
        return max(min(int(self._rate * self.SECONDS), max_batch_tokens), self.LEAST)

    def measure(self, tokens: int, seconds: float) -> None:
        """Takes note of a step that computed so many prefill tokens; a handful tells nothing."""
        if tokens < self.LEAST:
            return
        rate = tokens / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else self._rate + self.WEIGHT * (rate - self._rate)
