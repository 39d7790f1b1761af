"""An estimate of the chance that a draft token is accepted."""

from __future__ import annotations

FADING = 0.95
"""Weight of earlier observations after a draft."""
SLOW_FADING = 0.996
"""The same after a step in which there was none."""
FIRST_WEIGHT = 2.0
"""Observations as much as which the first estimate counts."""


class Acceptance:
    """The chance that the next draft token is accepted if those before it are. Recent drafts count most."""

    __slots__ = ("_accepted", "_first", "_tried")

    def __init__(self, first: float) -> None:
        """``first``: the chance before there are any drafts."""
        self._first = first
        self._tried = self._accepted = 0.0

    @property
    def chance(self) -> float:
        """Between 0 and 1, both excluded."""
        return (self._accepted + FIRST_WEIGHT * self._first) / (self._tried + FIRST_WEIGHT)

    @property
    def tried(self) -> float:
        """Draft tokens that count, the earlier ones less."""
        return self._tried

    def record(self, drafted: int, accepted: int) -> None:
        """Records a draft. Tokens behind the first that was rejected say nothing."""
        tried = accepted + (accepted < drafted)
        self._tried = FADING * self._tried + tried
        self._accepted = FADING * self._accepted + accepted

    def fade(self) -> None:
        """Forgets a little, so that another trial comes."""
        self._tried *= SLOW_FADING
        self._accepted *= SLOW_FADING
