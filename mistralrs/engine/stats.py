"""The engine at a glance, for whoever watches it. Plain numbers; knows nothing of how they come about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot, whose numbers may be a step apart; counts of steps, tokens and events are since the start."""

    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    """Blocks that nobody holds, cached ones included."""
    cached_blocks: int
    """Blocks whose content a new prompt could reuse."""
    prompt_tokens: int
    """Of prompts whose first token has been drawn."""
    cached_tokens: int
    """Prompt tokens that prefix hits saved."""
    completion_tokens: int
    drafted_tokens: int
    """Tokens that were guessed and computed before it was known whether they come."""
    accepted_tokens: int
    """Those of them that came."""
    steps: int
    """Forward passes, those that failed or were cut short included."""
    preemptions: int
    """Times that a running sequence lost its blocks to an older one and went back to wait."""
