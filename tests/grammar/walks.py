"""Answers under a grammar: generated from its masks, or fed to them."""

from __future__ import annotations

import random
from array import array
from functools import cache

from mistralrs.grammar.compile_grammar import CompiledGrammar, compile_grammar
from mistralrs.grammar.constraint import GrammarConstraint
from mistralrs.grammar.token_table import TokenTable
from mistralrs.text.tokenizer import Tokenizer
from tests.text.vocabularies import byte_level

TIMEOUT_S = 60.0
"""Seconds for a compilation on a machine that is busy with other tests."""
PADDING = 7
_END_CHANCE = 0.3


@cache
def tokenizer() -> Tokenizer:
    """Returns a byte-level tokenizer of about 260 tokens with two end tokens."""
    return Tokenizer.from_gguf(byte_level())


@cache
def table() -> TokenTable:
    """Returns its tokens, for a model with a few more logits."""
    return TokenTable(tokenizer(), vocab_size=tokenizer().vocab_size + PADDING)


def compiled(kind: str, text: str) -> CompiledGrammar:
    """Returns the grammar for that vocabulary."""
    return compile_grammar(kind, text, table(), timeout_s=TIMEOUT_S)


def allowed(constraint: GrammarConstraint) -> list[int]:
    """Returns the tokens of the mask."""
    words = array("I", [0]) * table().mask_words
    constraint.mask(words)
    return [32 * index + bit for index, word in enumerate(words) if word for bit in range(32) if word >> bit & 1]


def generate(grammar: CompiledGrammar, rng: random.Random, *, max_tokens: int = 150) -> bytes | None:
    """Returns an answer of random allowed tokens; None if it did not end within ``max_tokens``."""
    constraint = grammar.constraint()
    answer = b""
    for _ in range(max_tokens):
        tokens = allowed(constraint)
        ends = [token for token in tokens if token in table().eos_ids]
        assert bool(ends) == constraint.is_accepting
        others = [token for token in tokens if token not in table().eos_ids]
        if ends and (not others or rng.random() < _END_CHANCE):
            assert constraint.accept([rng.choice(ends)]) == 1
            return answer
        token = rng.choice(others)
        assert table().token_bytes[token]
        assert constraint.accept([token]) == 1
        answer += table().token_bytes[token]
    return None


def accepts(grammar: CompiledGrammar, text: str | bytes) -> bool:
    """Whether the masks allow the text, token by token, and an end token after it."""
    rest = text.encode() if isinstance(text, str) else text
    constraint = grammar.constraint()
    while rest:
        fitting = [token for token in allowed(constraint) if token not in table().eos_ids]
        fitting = [token for token in fitting if rest.startswith(table().token_bytes[token])]
        if not fitting:
            return False
        token = max(fitting, key=lambda each: len(table().token_bytes[each]))
        assert constraint.accept([token]) == 1
        rest = rest[len(table().token_bytes[token]) :]
    return set(table().eos_ids) <= set(allowed(constraint))
