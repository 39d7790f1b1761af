"""Small random grammars of each kind, each with a check by a program that nobody here wrote."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lark
import regex

from tests.grammar.json_checks import is_valid
from tests.grammar.yacc_checks import YaccChecker, YaccSource

ALPHABET = "abc01"
_CLASSES = ("[a-c]", "[^a]", r"\d", r"\w", ".", "[ab0]", r"[^\s]", "é", "[α-γ]", r"\p{Lu}", "[[:digit:]]")


@dataclass(frozen=True, slots=True)
class Case:
    """A grammar, and the check of its answers."""

    kind: str
    text: str
    check: Callable[[bytes], bool]


def regex_case(rng: random.Random) -> Case:
    pattern = _regex(rng, 3)
    if rng.random() < 0.3:
        pattern = rng.choice(("^%s", "%s$", "^%s$")) % f"(?:{pattern})"
    checker = regex.compile(pattern, regex.V1)
    return Case("regex", pattern, lambda answer: checker.fullmatch(answer.decode()) is not None)


def _regex(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(6) if depth else 0
    if kind <= 1:
        return rng.choice((*_CLASSES, *ALPHABET, *ALPHABET, r"\.", "-"))
    if kind == 2:
        return "".join(_regex(rng, depth - 1) for _ in range(rng.randint(1, 3)))
    if kind == 3:
        return f"(?:{'|'.join(_regex(rng, depth - 1) for _ in range(rng.randint(1, 3)))})"
    if kind == 4:
        return f"({_regex(rng, depth - 1)}){rng.choice(('*', '+', '?', '{2}', '{1,3}', '*?', '{0,2}?'))}"
    return f"(?i:{_regex(rng, depth - 1)})"


def json_case(rng: random.Random) -> Case:
    schema = _schema(rng, 3)
    if rng.random() < 0.3:
        schema = {"$defs": {"part": _schema(rng, 2)}, "properties": {"p": {"$ref": "#/$defs/part"}}, **schema}
    schema["title"] = "random"
    return Case("json_schema", json.dumps(schema), lambda answer: is_valid(answer, schema))


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[Callable[[random.Random, int], dict[str, Any]]] = [_number, _text, _constant]
    kinds += [_object, _object, _array, _combined] if depth else []
    schema = rng.choice(kinds)(rng, depth - 1)
    if rng.random() < 0.2:
        schema["description"] = "for people"
    return schema


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": rng.choice(("integer", "number"))}
    if rng.random() < 0.5:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = rng.choice((-20, -1, 0, 0.5, 3, 17.25))
    if rng.random() < 0.5:
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = rng.choice((18, 20.75, 100, 1e6))
    if rng.random() < 0.3:
        schema["multipleOf"] = rng.choice((1, 2, 5, 0.5, 0.25, 0.1, 3))
    return schema


def _text(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    kind = rng.randrange(4)
    if kind == 0:
        schema["pattern"] = rng.choice(("^a+$", "b", r"^\d{2}", "x|y$", r"^[^\n]*é$", r"^(ab|cd)\s?$", '"', r"^\W*$"))
    elif kind == 1:
        schema["format"] = rng.choice(("date", "time", "date-time", "uuid", "ipv4", "email"))
    if kind != 1 and rng.random() < 0.4:
        schema["maxLength"] = rng.randint(3, 12)
        schema["minLength"] = rng.randint(0, 3)
    return schema


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    values: list[Any] = [None, True, False, 0, 7, -3, 1.5, "", "a\nb", 'q"\\', "é😀", [1, "x"], {"k": [None]}]
    if rng.random() < 0.4:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 4))}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["a", "b b", "é", 'q"', "x1", "x2", "n\n"], rng.randint(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: _schema(rng, depth) for name in names}}
    schema["required"] = [name for name in names if rng.random() < 0.5]
    kind = rng.randrange(5)
    if kind <= 1:
        schema["additionalProperties"] = False
    elif kind == 2:
        schema["additionalProperties"] = _schema(rng, 0)
    elif kind == 3:
        schema["patternProperties"] = {rng.choice(("^x", "^[a-c]$", "é")): _schema(rng, 0)}
        schema["additionalProperties"] = rng.choice((False, _schema(rng, 0)))
    if rng.random() < 0.2:
        schema["minProperties"] = 1
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": rng.choice((True, _schema(rng, depth)))}
    if rng.random() < 0.4:
        schema["prefixItems"] = [_schema(rng, depth) for _ in range(rng.randint(1, 2))]
        schema["items"] = rng.choice((False, _schema(rng, depth)))
    elif rng.random() < 0.5:
        schema["minItems"] = rng.randint(0, 2)
        schema["maxItems"] = rng.randint(2, 4)
    return schema


def _combined(rng: random.Random, depth: int) -> dict[str, Any]:
    keyword = rng.choice(("anyOf", "allOf", "oneOf"))
    schema: dict[str, Any] = {keyword: [_schema(rng, depth) for _ in range(rng.randint(1, 3))]}
    if rng.random() < 0.3:
        schema["type"] = rng.choice(("object", "string", "integer"))
    return schema


def gbnf_case(rng: random.Random) -> Case:
    """A grammar over characters; lark's Earley parser with its complete lexer reads the same rules."""
    names = ["root", *(f"r-{number}" for number in range(rng.randint(1, 3)))]
    ours, theirs = [], []
    for index, name in enumerate(names):
        mine, other = _rule(rng, names, index)
        ours.append(f"{name} ::= {mine}")
        theirs.append(f"{_lark_name(name)}: {other}")
    checker = _earley("\n".join(theirs))
    return Case("gbnf", "\n".join(ours), lambda answer: _parses(checker, answer))


def lark_case(rng: random.Random) -> Case:
    """Rules over characters in the dialect of Lark that both programs read."""
    names = ["root", *(f"r-{number}" for number in range(rng.randint(1, 3)))]
    rules = [f"{_lark_name(name)}: {_rule(rng, names, index)[1]}" for index, name in enumerate(names)]
    checker = _earley("\n".join(rules))
    return Case("lark", "\n".join(["start: root", *rules]), lambda answer: _parses(checker, answer))


def _lark_name(name: str) -> str:
    return name.replace("-", "_")


def _rule(rng: random.Random, names: list[str], index: int) -> tuple[str, str]:
    """One rule's right side in GBNF and in Lark; its first alternative has no rule, so that an answer can end."""
    alternatives = [_terminal(rng)]
    for _ in range(rng.randint(1, 2)):
        parts = [_symbol(rng, names) for _ in range(rng.randint(1, 3))]
        alternatives.append((" ".join(part for part, _ in parts), " ".join(part for _, part in parts)))
    return " | ".join(mine for mine, _ in alternatives), " | ".join(other for _, other in alternatives)


def _symbol(rng: random.Random, names: list[str]) -> tuple[str, str]:
    if rng.random() < 0.4:
        name = rng.choice(names)
        return name, _lark_name(name)
    mine, other = _terminal(rng)
    times = rng.choice(("", "", "?", "+", "*"))
    return f"({mine}){times}", f"({other}){times}"


def _terminal(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.5:
        text = rng.choice(("a", "b", "ab", "é", "(", "0"))
        return f'"{text}"', f'"{text}"'
    text = rng.choice(("[ab]", "[a-c]", "[0-9]", "[^a]"))
    return text, f"/{text}/"


_TERMINALS = (
    "'a'",
    "'ab'",
    "'if'",
    "'=='",
    "'='",
    "'('",
    "')'",
    "';'",
    "'/[a-z]+/'",
    "'/[0-9]+/'",
    "'/[ab]+=?/'",
    "'/x*/'",
)
_OPERATORS = ("'+'", "'-'", "'*'", "'<'", "'?'", "'and'")


def yacc_case(rng: random.Random) -> Case:
    """Rules over terminals that overlap, or expressions with precedences; ply reads the same."""
    source = _operators(rng) if rng.random() < 0.4 else _statements(rng)
    if rng.random() < 0.8:
        source.skips = [r"'/[ \n]+/'", *(["'/#[a-z]*#/'"] if rng.random() < 0.3 else [])]
    checkers: list[YaccChecker] = []  # made for the first answer: ply has no parser for some grammars with conflicts

    def check(answer: bytes) -> bool:
        if not checkers:
            checkers.append(YaccChecker(source))
        return checkers[0].accepts(answer)

    return Case("yacc", source.text(), check)


def _statements(rng: random.Random) -> YaccSource:
    names = ["s", *(f"r{number}" for number in range(rng.randint(1, 3)))]
    terminals = rng.sample(_TERMINALS, rng.randint(3, 6))
    rules = []
    for name in names:
        alternatives = [[rng.choice(terminals)]]
        for _ in range(rng.randint(1, 3)):
            alternatives.append(
                [rng.choice((rng.choice(names), *rng.sample(terminals, 2))) for _ in range(rng.randint(1, 4))]
            )
        if rng.random() < 0.15:
            alternatives.append([])
        rules.append((name, [list(each) for each in dict.fromkeys(map(tuple, alternatives))]))
    return YaccSource(rules)


def _operators(rng: random.Random) -> YaccSource:
    operators = rng.sample(_OPERATORS, rng.randint(1, 4))
    precedences, alternatives = [], [["'('", "e", "')'"], ["'/[0-9]+/'"], ["'/[a-z]+/'"]]
    for operator in operators:
        precedences.append((rng.choice(("left", "right", "nonassoc", "nonassoc")), [operator]))
        alternatives.append(["e", operator, "e"])
    if rng.random() < 0.4:
        precedences.append((rng.choice(("right", "nonassoc")), ["'!'"]))
        alternatives.append(rng.choice((["'!'", "e"], ["e", "'!'"])))
    rng.shuffle(precedences)
    return YaccSource([("e", alternatives)], precedences=precedences)


def choice_case(rng: random.Random) -> Case:
    choices = ["".join(rng.choice('ab é0"\\\n') for _ in range(rng.randint(1, 12))) for _ in range(rng.randint(1, 6))]
    return Case("choice", json.dumps(choices), lambda answer: answer.decode() in choices)


def structural_tag_case(rng: random.Random) -> Case:
    """Many triggers, since a random text hardly ever has a certain one. Each end shows where its value ends."""
    triggers = rng.sample(string.ascii_letters + "<(#é", rng.randint(20, 50))
    structures = [
        {
            "begin": trigger + rng.choice(("", "", "=", "1>")),
            "schema": _schema(rng, rng.randint(0, 1)),
            "end": rng.choice((";", "</f>", "|")),
        }
        for trigger in triggers
    ]
    text = json.dumps({"type": "structural_tag", "structures": structures, "triggers": triggers})
    begins = dict(zip(triggers, structures, strict=True))
    return Case("structural_tag", text, lambda answer: _has_whole_tags(answer.decode(), begins))


def _has_whole_tags(text: str, structures: dict[str, dict[str, Any]]) -> bool:
    """Whether each trigger in the text begins a tag whose value its schema describes; ``structures`` by triggers."""
    place = 0
    while place < len(text):
        structure = structures.get(text[place])
        if structure is None:
            place += 1
            continue
        if not text.startswith(structure["begin"], place):
            return False
        start = place + len(structure["begin"])
        start += len(text[start:]) - len(text[start:].lstrip(" \t\n\r"))
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            return False
        rest = text[end:].lstrip(" \t\n\r")
        if not rest.startswith(structure["end"]) or not is_valid(text[start:end].encode(), structure["schema"]):
            return False
        place = len(text) - len(rest) + len(structure["end"])
    return True


def _earley(rules: str) -> lark.Lark:
    return lark.Lark(rules, start="root", parser="earley", lexer="dynamic_complete")


def _parses(checker: lark.Lark, answer: bytes) -> bool:
    try:
        checker.parse(answer.decode())
    except lark.exceptions.LarkError:
        return False
    return True


CASES: dict[str, Callable[[random.Random], Case]] = {
    "regex": regex_case,
    "json_schema": json_case,
    "gbnf": gbnf_case,
    "lark": lark_case,
    "yacc": yacc_case,
    "choice": choice_case,
    "structural_tag": structural_tag_case,
}
