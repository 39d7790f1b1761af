"""Limits the prefill tokens of a step, so that streams beside it do not stall."""

from __future__ import annotations


class PrefillBudget:
    """Prefill tokens that a step may have so that decoding streams wait for ``SECONDS`` at most, by measured speed."""

    SECONDS = 0.25
    MIN_TOKENS = 16
    """Smallest limit, in tokens: a smaller chunk costs a whole pass over the weights for little progress."""
    SMOOTHING = 0.3
    """Weight of the newest measurement in the exponential average."""

    def __init__(self) -> None:
        self._rate: float | None = None  # tokens a second

    def limit(self, max_batch_tokens: int) -> int:
        """Tokens that the measured rate allows, at most ``max_batch_tokens``, which it is before the first
        measurement."""
        if self._rate is None:
            return max_batch_tokens
        return max(min(int(self._rate * self.SECONDS), max_batch_tokens), self.MIN_TOKENS)

    def measure(self, tokens: int, seconds: float) -> None:
        """Records a step that computed ``tokens`` prefill tokens. Too few tokens do not count: they measure other
        costs."""
        if tokens < self.MIN_TOKENS:
            return
        rate = tokens / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else self._rate + self.SMOOTHING * (rate - self._rate)
