"""Grammars in llguidance's dialect of Lark, with the schemas in them checked like any other.

Terminals in capitals are lexemes that match as much as they can. Attributes that make the library hide tokens or change
the sampling are refused, and so are options that would let bytes through that are no text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llguidance import LLMatcher

from mistralrs.errors import RequestError
from mistralrs.grammar.json_grammar import inline_schema
from mistralrs.grammar.library_limits import MAX_RULES, NO_FORCING
from mistralrs.grammar.translation import Place, Translation, grammar_error, reason_in
from mistralrs.parsing import parse_nested

_OPTIONS = ("allow_initial_skip", "skip_repetition")
_ATTRIBUTES = ("lazy", "suffix", "capture", "suffix_capture")
_PIECE = re.compile(
    r"""
    (?P<string>"(?:\\.|[^"\\\n])*"i?)
    | (?P<comment>(?://|\#)[^\n]*)
    | (?P<regex>/(?:\\.|[^/\\\n])+/[a-z]*)
    | (?P<rule>^[ \t]*[?!]?[A-Za-z_][\w-]*[ \t]*(?P<attributes>\[(?:"(?:\\.|[^"\\\n])*"|[^\]"\n])*\])?[^:\n"/]*:)
    | (?P<directive>%[a-z_]+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_ATTRIBUTE = re.compile(r'([A-Za-z_]+)\s*(?:=\s*("(?:\\.|[^"\\])*"|[^,\]]*))?')


def translate_lark(text: str) -> Translation:
    """The translation of a Lark grammar. Raises RequestError with the place of what is not supported."""
    if text.lstrip().startswith("{"):  # the library would take it for its own JSON
        raise grammar_error("a rule is expected in place of {", place=Place.of(text, text.index("{")))
    return Translation(LLMatcher.grammar_from_lark(f"{NO_FORCING}\n{''.join(_checked(text))}"))


def names_control_tokens(text: str) -> bool:
    """Whether the grammar names control tokens, as in ``<|im_end|>``: only a vocabulary tells whether they exist."""
    return "<" in text and any(match["other"] == "<" for match in _PIECE.finditer(text))


def _checked(text: str) -> Iterator[str]:
    index = num_rules = 0
    while index < len(text):
        match = _PIECE.match(text, index)
        assert match is not None
        piece, index = match[0], match.end()
        if match["rule"]:
            num_rules += 1
            if num_rules > MAX_RULES:
                raise grammar_error(f"it has more than {MAX_RULES} rules")
            _check_attributes(match["attributes"] or "", Place.of(text, match.start()))
        elif piece in ("%json", "%llguidance"):
            place = Place.of(text, match.start())
            value, index = _json_at(text, index, place=place)
            yield f"{piece} {_schema(value, place) if piece == '%json' else _options(value, place)}"
            continue
        yield piece


def _json_at(text: str, index: int, *, place: Place) -> tuple[object, int]:
    start = len(text) - len(text[index:].lstrip())
    try:
        return parse_nested(json.JSONDecoder().raw_decode, text, idx=start)
    except ValueError as error:
        raise grammar_error(f"no JSON follows: {error}", place=place) from None


def _schema(value: object, place: Place) -> str:
    try:
        return inline_schema(value)
    except RequestError as error:
        raise grammar_error(reason_in(error), hint=error.hint, place=place) from None


def _options(value: object, place: Place) -> str:
    unknown = sorted(set(value).difference(_OPTIONS)) if isinstance(value, dict) else ["%llguidance"]
    if unknown:
        raise grammar_error(f"the option {unknown[0]} is not supported", place=place)
    return json.dumps(value)


def _check_attributes(attributes: str, place: Place) -> None:
    for match in _ATTRIBUTE.finditer(attributes.strip("[]")):
        if match[1] not in _ATTRIBUTES:
            raise grammar_error(
                f"the attribute {match[1]} is not supported",
                hint="use suffix or lazy in place of stop" if match[1].startswith("stop") else None,
                place=place,
            )
