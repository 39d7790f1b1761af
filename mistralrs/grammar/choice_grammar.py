"""Choices: a JSON array of texts, one of which is the whole answer."""

from __future__ import annotations

import json

from mistralrs.grammar.translation import Translation, grammar_error
from mistralrs.parsing import parse_nested

MAX_CHOICES = 10_000


def translate_choice(text: str) -> Translation:
    """The translation of a JSON array of texts. Raises RequestError if it is something else or empty."""
    try:
        choices = parse_nested(json.loads, text)
    except ValueError:
        choices = None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise grammar_error("the choices are not a JSON array of texts", hint='for example: ["yes", "no"]')
    if len(choices) > MAX_CHOICES:
        raise grammar_error(f"{len(choices)} choices are more than {MAX_CHOICES}")
    return Translation(f"start: CHOICE\nCHOICE: {' | '.join(map(literal, dict.fromkeys(choices)))}")


def literal(text: str) -> str:
    """A text as a literal of llguidance's Lark dialect."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise grammar_error(f"{text!a} has half of a surrogate pair, which is no character")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # which the dialect's lexer refuses
