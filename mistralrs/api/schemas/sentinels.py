"""Numbers by which callers say none, all and any, as vLLM and llama.cpp have them: the same in a body, on the command
line and in Python.

Imports nothing that takes time.
"""

from __future__ import annotations

import secrets

MAX_INT = 2**31 - 1
RANDOM_SEED = -1
LEAST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1
LEAST_MAX_TOKENS = -2
"""-1 and -2 are no limit: llama.cpp knows both, and both mean the end of the context here."""


def seed_of(value: int | None) -> int:
    """The seed to draw with: a random one for None and -1."""
    return secrets.randbits(32) if value is None or value == RANDOM_SEED else value


def max_tokens_of(value: int) -> int | None:
    """The limit of an answer; None, which is the end of the context, for numbers below 0."""
    return None if value < 0 else value


def top_k_of(value: int) -> int:
    """0, which is off, for -1."""
    return max(value, 0)


def repeat_last_n_from(value: int) -> int:
    """Tokens to look back on: all that there can be for -1."""
    return MAX_INT if value < 0 else value
