"""A grammar as a request carries it: its kind and its text. Imports no library, so that requests load fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GrammarKind = Literal["regex", "yacc", "lark", "gbnf", "json_schema", "json_object", "choice", "structural_tag"]
GRAMMAR_KINDS: tuple[GrammarKind, ...] = get_args(GrammarKind)


@dataclass(frozen=True, slots=True)
class GrammarText:
    """A grammar that the answer must match from its first token to its end."""

    kind: str
    """One of ``GRAMMAR_KINDS``, each of which ``compile_grammar.KINDS`` translates."""
    text: str
