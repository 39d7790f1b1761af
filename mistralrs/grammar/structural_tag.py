"""Structural tags: free text in which each trigger begins a tag, whose content obeys a JSON schema.

The text is ``{"type": "structural_tag", "structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}``, as vLLM
has it. Behind a trigger, one of the structures follows that begin with it.
"""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher

from mistralrs.errors import RequestError
from mistralrs.grammar.choice_grammar import literal
from mistralrs.grammar.json_grammar import inline_schema
from mistralrs.grammar.library_limits import NO_FORCING
from mistralrs.grammar.translation import Translation, grammar_error, reason_in
from mistralrs.parsing import parse_nested

MAX_STRUCTURES = 128
_ROOT = ("type", "structures", "triggers")
_STRUCTURE = ("begin", "schema", "end")


def translate_structural_tag(text: str) -> Translation:
    """The translation of a structural tag. Raises RequestError naming the member that is wrong."""
    structures, triggers = _parsed(text)
    lines = [NO_FORCING, f"start: ({' | '.join(f'tag_{n}' for n in range(len(structures)))})* tail", "tail: TEXT"]
    lines.append(r"TEXT: /(?s:.*)/")
    for number, structure in enumerate(structures):
        begin, end = structure["begin"], structure["end"]
        trigger = next((each for each in triggers if begin.startswith(each)), None)
        if trigger is None:
            raise grammar_error(f"/structures/{number}/begin: it begins with none of the triggers")
        try:
            schema = inline_schema(structure["schema"])
        except RequestError as error:
            place = f"/structures/{number}/schema"
            pointer = f"{place}{(error.param or '').removeprefix('grammar')}"
            reason = f"{place}{reason_in(error).removeprefix('the schema')}"
            raise grammar_error(reason, hint=error.hint, pointer=pointer) from None
        parts = [f"head_{number}", _quoted(begin[len(trigger) :]), f"%json {schema}", _quoted(end)]
        lines += [f"head_{number}[lazy]: TEXT {literal(trigger)}", f"tag_{number}: {' '.join(parts)}"]
    return Translation(LLMatcher.grammar_from_lark("\n".join(lines)))


def _quoted(text: str) -> str:
    return literal(text) if text else ""


def _parsed(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        value = parse_nested(json.loads, text)
    except ValueError as error:
        raise grammar_error(f"the structural tag is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("type", "structural_tag") != "structural_tag":
        raise grammar_error('the structural tag is not an object of the type "structural_tag"')
    _refuse_others(value, _ROOT, "")
    structures, triggers = value.get("structures"), value.get("triggers")
    if not isinstance(structures, list) or not 0 < len(structures) <= MAX_STRUCTURES:
        raise grammar_error(f"/structures: it is not a list of up to {MAX_STRUCTURES} structures")
    if not isinstance(triggers, list) or not all(isinstance(each, str) and each for each in triggers):
        raise grammar_error("/triggers: it is not a list of texts")
    for number, structure in enumerate(structures):
        place = f"/structures/{number}"
        if not isinstance(structure, dict) or not all(
            isinstance(structure.get(name), str) for name in ("begin", "end")
        ):
            raise grammar_error(f"{place}: it is not an object with the texts begin and end")
        _refuse_others(structure, _STRUCTURE, place)
        structure.setdefault("schema", {})
    for number, trigger in enumerate(triggers):
        if trigger.startswith("<|") and trigger.endswith("|>"):
            raise grammar_error(
                f"/triggers/{number}: {trigger} looks like a control token, and triggers are text",
                hint="use a Lark grammar, which can name control tokens",
            )
    return structures, triggers


def _refuse_others(value: dict[str, Any], names: tuple[str, ...], place: str) -> None:
    for name in value:
        if name not in names:
            raise grammar_error(
                f"{place}/{name}: it is not supported",
                hint=f"the members are {', '.join(names)}",
                pointer=f"{place}/{name}",
            )
