"""The engine's statistics, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot whose numbers may be a step apart. Steps, tokens and preemptions are counted since the start."""

    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    """Blocks that are not in use, cached ones included."""
    cached_blocks: int
    """Blocks whose content a new prompt could reuse."""
    prompt_tokens: int
    """Tokens of prompts whose first token has been sampled."""
    cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    completion_tokens: int
    drafted_tokens: int
    """Draft tokens that were computed."""
    accepted_tokens: int
    """Draft tokens that the sampler confirmed."""
    steps: int
    """Forward passes, those that failed or were stopped early included."""
    preemptions: int
    """Times that a running sequence lost its blocks to an older one and had to wait again."""
    forced_tokens: int = 0
    """Completion tokens that a grammar left no choice about, taken without a step of their own."""
