"""The limit on the tokens that one answer thinks, and the tokens that close a thought beyond it."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable

from mistralrs.engine.config import ThinkingBudget

_MAX_UNFINISHED = 3
"""Tokens beyond the budget that a character may take to its end, at most."""


class ThinkingLimit:
    """Forces the tokens that close a thought when it has used up its tokens.

    It depends on the known tokens alone, like the forced tokens of a grammar: neither draft tokens nor batches nor
    preemptions change an answer. Thoughts of one answer share one budget.
    """

    def __init__(self, budget: ThinkingBudget, spell: Callable[[int], bytes]) -> None:
        """``spell``: a token's bytes; for a control token, those of its name."""
        self._budget = budget
        self._spell = spell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""  # the end of the answer's text in which a marker may have begun
        self._is_open = budget.is_open
        self._left = budget.tokens
        self._closing: deque[int] = deque()
        self._close_if_used_up()

    @property
    def next_forced(self) -> int | None:
        """The token that comes next whatever the logits are; None: they decide."""
        return self._closing[0] if self._closing else None

    def accept(self, token: int) -> None:
        """Appends a known token; one that is not forced here ends a run of forced ones."""
        was_open, was_closing = self._is_open, bool(self._closing)
        if was_closing and self._closing.popleft() != token:
            self._closing.clear()
        self._read(token)
        if was_open and self._is_open and not was_closing:
            self._left -= 1
        self._close_if_used_up()

    def _read(self, token: int) -> None:
        """Notes whether a thought is open behind the token."""
        self._text += self._decoder.decode(self._spell(token))
        while True:
            marker = self._budget.close if self._is_open else self._budget.open
            _, found, rest = self._text.partition(marker)
            if not found:
                break
            self._is_open = not self._is_open
            self._text = rest
        longest = max(len(self._budget.open), len(self._budget.close))
        self._text = self._text[-longest:]

    def _close_if_used_up(self) -> None:
        unfinished = bool(self._decoder.getstate()[0]) and self._left > -_MAX_UNFINISHED
        if self._is_open and self._left <= 0 and not self._closing and not unfinished:
            self._closing.extend(self._budget.closing)
