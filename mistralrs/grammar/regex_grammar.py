"""Regular expressions: Rust's syntax, Unicode characters, matched as a whole.

``.`` is every character except a line feed and classes hold characters, never single bytes of one; ``\\d``, ``\\w`` and
``\\s`` hold ASCII's, as in the original and in JavaScript. The whole answer matches, with or
without ``^`` and ``$``: in ``a|b$`` both alternatives end the answer. Lazy and greedy operators make the same language.
Look-around, back-references and word boundaries are refused by name.
"""

from __future__ import annotations

import json
import math
import re

from llguidance import LLMatcher

from mistralrs.grammar.library_limits import NO_FORCING
from mistralrs.grammar.regex_syntax import refuse_unsupported, with_ascii_classes
from mistralrs.grammar.translation import Translation

_REPEATS = re.compile(r"(?<!\\x)\{(\d{1,12}),?(\d{0,12})\}")
_MAX_FORCED = 1000
"""Repetitions, multiplied, up to which forced bytes are followed: the library follows them anew for every mask."""


def translate_regex(text: str) -> Translation:
    """The translation of a regular expression. Raises RequestError naming what is not supported."""
    refuse_unsupported(text)
    return Translation(regex_to_library(with_ascii_classes(text)))


def regex_to_library(text: str) -> str:
    """The grammar of an expression in Rust's syntax, in the library's language."""
    grammar = LLMatcher.grammar_from_regex(text)
    if math.prod(int(count) for counts in _REPEATS.findall(text) for count in counts if count) <= _MAX_FORCED:
        return grammar
    lark = json.loads(grammar)["grammars"][0]["lark_grammar"]
    return LLMatcher.grammar_from_lark(f"{NO_FORCING}\n{lark}")
