"""The rules of values in a notation of its own, as OLMo 3 and Gemma write the arguments of calls."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mistralrs.grammar.choice_grammar import literal
from mistralrs.grammar.json_values import checked_constant, schema_error
from mistralrs.text.response.call_notation import KEY

if TYPE_CHECKING:
    from mistralrs.api.serving.grammars.thought_grammar import MarkedGrammar
    from mistralrs.text.response.call_notation import Notation

CANNOT = "cannot be held in this model's form of calls"


class NotationGrammar:
    """Writes the rules of values for one answer."""

    def __init__(self, notation: Notation, marked: MarkedGrammar) -> None:
        self.notation = notation
        self._marked = marked

    def shared_rules(self) -> list[str]:
        """Returns the rules of values without a schema, which all tools use."""
        notation = self.notation
        texts = self.text_rules("any_text", "ANY_TEXT")
        comma = literal(notation.separator)
        member = f"{self._any_key(notation.member)} any_value"
        argument = f"{self._any_key(notation.argument)} any_value"
        return [
            *texts,
            r"ANY_KEY: /[A-Za-z_][A-Za-z0-9_]*/",
            'any_value: any_text | any_number | "true" | "false" | "null" | any_array | any_object',
            'any_number: %json {"type": "number"}',
            f'any_array: "[" (any_value ({comma} any_value)*)? "]"',
            f'any_object: "{{" ({member} ({comma} {member})*)? "}}"',
            f"any_arguments: {self._enclosed(f'({argument} ({comma} {argument})*)?')}",
        ]

    def text_rules(self, name: str, terminal: str, *, least: int = 0, most: int | None = None) -> list[str]:
        """Returns the rules of ``name``, a text of so many characters; ``terminal``: a name for its own."""
        mark, ends = self.notation.text_mark, self.notation.ends
        bounds = f"{{{least},{'' if most is None else most}}}"
        if not mark:
            body = rf'"([^"\\\x00-\x1f\x7f]|\\["\\bfnrt]){bounds}"'
            return [f"{name}: {terminal}", f"{terminal}: /{body}/{_without(ends)}"]
        written, any_character = self._marked.written(mark), r"[^\x01\x02]"
        if not self._marked.controls(mark):  # the text goes on to the first mark
            body = f"(/{any_character}{bounds}/ {written})"
            return [
                f"{name}: {written} {name}_rest",
                f"{name}_rest[lazy]: {terminal}",
                f"{terminal}: {body}{_without(ends)}",
            ]
        if most == 0:
            return [f"{name}: {written} {written}"]
        bounds = f"{{{max(least, 1)},{'' if most is None else most}}}"
        optional = "" if least else "?"
        return [
            f"{name}: {written} {terminal}{optional} {written}",
            f"{terminal}: /{any_character}{bounds}/{_without((mark, *ends))}",
        ]

    def constant(self, value: object, pointer: str) -> str:
        """Returns the symbols of one value. Raises RequestError where a text in it cannot be written."""
        checked_constant(value, pointer)
        for text in _texts(value):
            if not self.notation.has_text(text):
                raise schema_error(pointer, "a text of it ends the call")
        for key in _keys(value):
            if not self.notation.has_key(key, self.notation.member):
                raise schema_error(pointer, f"a name in it {CANNOT}")
        return self._marked.written(self.notation.spelt(value))

    def enclosed_members(self, members: Sequence[tuple[str, bool]], name: str, *, top: bool) -> list[str]:
        """Returns the rules of ``name``, an object with these members in order, each with whether it must be there.

        ``top``: it is that of all arguments.
        """
        comma = literal(self.notation.separator)
        inside = f"{name}_first_0"
        rules = [f"{name}: {self._enclosed(inside) if top else _braces(inside)}"]
        for place, (member, required) in enumerate(members):
            following = f"{name}_rest_{place + 1}"
            first, rest = f"{member} {following}", f"{comma} {member} {following}"
            if not required:
                first, rest = f"{first} | {name}_first_{place + 1}", f"{rest} | {following}"
            rules.append(f"{name}_first_{place}: {first}")
            if place:
                rules.append(f"{name}_rest_{place}: {rest}")
        end = len(members)
        return [*rules, *(f'{name}_{each}_{end}: ""' for each in ("first", "rest"))]

    def any_members(self, value: str) -> str:
        """Returns the symbols of an object that has any members with such values."""
        member = f"{self._any_key(self.notation.member)} {value}"
        return _braces(f"({member} ({literal(self.notation.separator)} {member})*)?")

    def array(self, item: str, least: int, most: int | None) -> str:
        """Returns the symbols of an array with so many items."""
        if most == 0:
            return '"[" "]"'
        comma = literal(self.notation.separator)
        bounds = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f"{item} ({comma} {item}){bounds}"
        return f'"[" {items} "]"' if least else f'"[" ({items})? "]"'

    def _enclosed(self, symbols: str) -> str:
        notation = self.notation
        return " ".join(filter(None, (_text(notation.opening), symbols, _text(notation.closing))))

    def _any_key(self, form: str) -> str:
        before, after = form.split(KEY)
        return f"any_text {literal(after[1:])}" if before else f"ANY_KEY {literal(after)}"


def _texts(value: object) -> Iterator[str]:
    """Yields the texts in a value, but names of members."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _keys(value: object) -> Iterator[str]:
    """Yields the names of members in a value."""
    if isinstance(value, Mapping):
        yield from value
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _keys(each)


def _without(ends: Sequence[str]) -> str:
    """Returns the end of a terminal that has none of these texts."""
    if not ends:
        return ""
    several = "|".join(re.escape(end).replace("/", r"\/") for end in ends)
    return rf" & ~/(?s:.*)({several})(?s:.*)/"


def _braces(symbols: str) -> str:
    return f'"{{" {symbols} "}}"'


def _text(text: str) -> str:
    return literal(text) if text else ""
