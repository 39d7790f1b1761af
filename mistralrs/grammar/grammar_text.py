"""A grammar as a request carries it: its kind and its text. Imports nothing, so that requests load fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GrammarText:
    """A grammar that the answer must match from its first token to its end."""

    kind: str
    """One of ``compile_grammar.KINDS``."""
    text: str
