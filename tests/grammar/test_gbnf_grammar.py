"""GBNF: lexemes change no language, and a grammar of JSON has them."""

from __future__ import annotations

import random

import pytest

from mistralrs.grammar import gbnf_grammar
from tests.grammar.random_grammars import gbnf_case
from tests.grammar.walks import accepts, compiled, generate

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


def test_a_grammar_of_json_is_read_in_lexemes() -> None:
    translation = gbnf_grammar.translate_gbnf(JSON).grammar
    assert "\nL0: " in translation
    assert "\nC0: " not in translation
    grammar = compiled("gbnf", JSON)
    assert accepts(grammar, '{"a": [1, -2.5e3, {"b\\n": null}], "é":"" }')
    assert not accepts(grammar, '{"a": 01}')
    assert not accepts(grammar, "[1]")


def test_lexemes_change_no_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer under the rules over characters is one under the lexemes, and the other way round."""
    rng = random.Random(11)
    with_lexemes = 0
    for _ in range(40):
        text = gbnf_case(rng).text
        lexemes = compiled("gbnf", text)
        with_lexemes += "\nL0: " in gbnf_grammar.translate_gbnf(text).grammar
        with monkeypatch.context() as patch:
            patch.setattr(gbnf_grammar, "lexeme_grammar", lambda *arguments, **options: None)
            patch.setattr(gbnf_grammar, "_sizes", lambda rules: {})
            characters = compiled("gbnf", text)
        for one, other in ((lexemes, characters), (characters, lexemes)):
            answers = [answer for _ in range(4) if (answer := generate(one, rng, max_tokens=40)) is not None]
            assert [answer for answer in answers if not accepts(other, answer)] == [], text
    assert with_lexemes > 5
