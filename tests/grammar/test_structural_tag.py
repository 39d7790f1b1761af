"""Structural tags: free text, and schemas behind triggers."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from mistralrs.errors import RequestError
from tests.grammar.walks import accepts, compiled, table

TAG: dict[str, Any] = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<f=a>", "schema": {"type": "object", "additionalProperties": {"type": "integer"}}, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"type": "boolean"}, "end": ""},
    ],
    "triggers": ["<f="],
}


@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [
        ("", True),
        ("plain <text> = f", True),
        ('hello <f=a>{"x": 1}</f> more', True),
        ("<f=b>true<f=b>false and text", True),
        ('<f=a>{"x": "y"}</f>', False),
        ("<f=c>", False),
        ("text <f=", False),
        ("<f=a>{}", False),
        ("<f=b>1", False),
    ],
)
def test_text_is_free_until_a_trigger(text: str, is_accepted: bool) -> None:
    assert accepts(compiled("structural_tag", json.dumps(TAG)), text) is is_accepted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structures": []}, "/structures: it is not a list"),
        ({"triggers": ["<g="]}, "/structures/0/begin: it begins with none of the triggers"),
        ({"triggers": "<f="}, "/triggers: it is not a list of texts"),
        ({"triggers": ["<|tool|>", "<f="]}, "/triggers/0: <|tool|> looks like a control token"),
        ({"format": {}}, "/format: it is not supported"),
        ({"structures": [{"begin": "<f=", "end": 3}]}, "/structures/0: it is not an object with the texts"),
        (
            {"structures": [{"begin": "<f=", "end": "", "schema": {"items": {"uniqueItems": True}}}]},
            "/structures/0/schema/items/uniqueItems: uniqueItems is not supported",
        ),
        ({"type": "json"}, 'not an object of the type "structural_tag"'),
    ],
)
def test_errors_name_the_member(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled("structural_tag", json.dumps(TAG | changes))
    assert message in caught.value.message


def test_what_follows_every_trigger_obeys_its_schema() -> None:
    """Walks prefer the trigger's text, which random text would hardly ever have."""
    rng = random.Random(4)
    grammar = compiled("structural_tag", json.dumps(TAG))
    for _ in range(20):
        constraint, answer = grammar.constraint(), b""
        for _ in range(rng.randint(1, 3)):
            for piece in (b"x" * rng.randint(0, 2), b"<f=", rng.choice((b"a>{", b"b>tru"))):
                tokens = table().tokens_of(piece)
                assert constraint.accept(tokens) == len(tokens)
                answer += piece
            ending = b'"k":5}</f>' if answer.endswith(b"{") else b"e"
            tokens = table().tokens_of(ending)
            assert constraint.accept(tokens) == len(tokens)
            answer += ending
        assert constraint.is_accepting
        assert re.fullmatch(rb'(x*<f=(a>\{"k":5\}</f>|b>true))+', answer)
        assert constraint.accept(table().tokens_of(b"<f=z")) == len(table().tokens_of(b"<f="))
