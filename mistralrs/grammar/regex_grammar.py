"""Regular expressions: Rust's syntax, Unicode characters, matched as a whole.

``.`` is every character except a line feed and classes hold characters, never single bytes of one. The whole answer
matches, with or without ``^`` and ``$``: in ``a|b$`` both alternatives end the answer. Lazy and greedy operators make
the same language. Look-around, back-references and word boundaries are refused by name.
"""

from __future__ import annotations

from llguidance import LLMatcher

from mistralrs.grammar.regex_syntax import refuse_unsupported
from mistralrs.grammar.translation import Translation


def translate_regex(text: str) -> Translation:
    """The translation of a regular expression. Raises RequestError naming what is not supported."""
    refuse_unsupported(text)
    return Translation(LLMatcher.grammar_from_regex(text))
