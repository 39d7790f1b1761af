"""Numbers that mean none, all and any, as in vLLM and llama.cpp.

They mean the same in a body, on the command line and in Python. Importing this module takes no time.
"""

from __future__ import annotations

import secrets

MAX_INT = 2**31 - 1
RANDOM_SEED = -1
LEAST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1
LEAST_MAX_TOKENS = -2
"""Numbers that mean no limit: llama.cpp has both, and both mean the end of the context here."""


def seed_of(value: int | None) -> int:
    """Returns the seed to draw with: a random one for None and -1."""
    return secrets.randbits(32) if value is None or value == RANDOM_SEED else value


def max_tokens_of(value: int) -> int | None:
    """Returns the limit of an answer; None, which is the end of the context, for numbers below 0."""
    return None if value < 0 else value


def top_k_of(value: int) -> int:
    """Returns 0, which is off, for -1."""
    return max(value, 0)


def repeat_last_n_from(value: int) -> int:
    """Returns the number of tokens to look back on; -1 is all that a sequence can have."""
    return MAX_INT if value < 0 else value
