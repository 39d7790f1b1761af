"""Notices answers that repeat themselves word for word."""

from __future__ import annotations

from collections.abc import Sequence

LAST_WORDS = 600
LONGEST_PERIOD = 150
"""Words of the longest text whose repetition is noticed."""
LEAST_WORDS = 24
"""Words that a repetition has at least, all its copies together."""
LEAST_CHARACTERS = 80
"""Characters of an answer that is the same as an earlier one, at least: short ones may well be the same."""
DRY_MULTIPLIER = 0.8
"""The penalty with which an answer is made anew, which is the usual one of DRY."""


def repeats_itself(text: str) -> bool:
    """Returns whether a text ends with the same words at least three times in a row."""
    words = text.split()[-LAST_WORDS:]
    for period in range(1, min(LONGEST_PERIOD, len(words) // 3) + 1):
        needed = max(3 * period, LEAST_WORDS)
        end = words[-needed - period :] if len(words) >= needed + period else words[-needed:]
        if len(end) >= needed and all(end[place] == end[place - period] for place in range(period, len(end))):
            return True
    return False


def is_said_before(text: str, earlier: Sequence[str]) -> bool:
    """Returns whether an earlier answer has the same words."""
    words = text.split()
    return len(text) >= LEAST_CHARACTERS and any(words == each.split() for each in earlier)
