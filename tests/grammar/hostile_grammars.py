"""Grammars that are broken, enormous, deep, ambiguous or endless, and what becomes of them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from mistralrs.errors import RequestError
from tests.grammar.random_grammars import CASES
from tests.grammar.walks import allowed, compiled, table

TOKENS = 12


def _regexes(rng: random.Random) -> str:
    size = rng.choice((10, 300, 5000))
    return rng.choice(
        (
            "(" * size + "a" + ")" * size,
            f"((a{{{size}}}){{{size}}}){{{size}}}",
            f"(a|b)*a(a|b){{{size}}}",
            f"(a*)*{{{size}}}",
            "|".join(f"word{number}x*" for number in range(size)),
            rf"(\p{{L}}\p{{N}}){{{size}}}",
            f"a{{{size * 1000}}}",
            "(?i:" + "".join(rng.choice("abc.*+?[](){}|\\^$") for _ in range(size)),
            "".join(rng.choice("abc.*+?[](){}|\\^$dwé") for _ in range(30)),
            "x+x+y" * size,
        )
    )


def _larks(rng: random.Random) -> str:
    size = rng.choice((10, 300, 3000))
    return rng.choice(
        (
            "start: " + "(" * size + '"a"' + ")" * size,
            "start: start start | start | " * 3 + '""',
            'start: "a" start',
            "start: A A\nA: /x+/",
            "start: r0\n" + "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(size)) + f'\nr{size}: "a"',
            "start: r0\n" + "\n".join(f'r{n}: r{n + 1} | r0 "a" | ' for n in range(size)) + f'\nr{size}: "a"',
            f'start: (("a"{{{size}}}){{{size}}}){{{size}}}',
            'start: ("a"? "a"? "a"*)* "b"',
            "start: A\n"
            + "\n".join(f"A{n}: /a{{{size}}}/" for n in range(50))
            + "\nA: /(a|b)*/ & ~/(?s:.*)abab(?s:.*)/",
            'start: %json {"type": "array", "items": {"$ref": "#"}, "minItems": 1}',
            "".join(
                rng.choice(('"', "a", ":", "|", "(", ")", "\n", "/", "%json", "{", "~", "start")) for _ in range(60)
            ),
        )
    )


def _schemas(rng: random.Random) -> str:
    size = rng.choice((10, 300, 3000))
    return rng.choice(
        (
            '{"items":' * size + "{}" + "}" * size,
            json.dumps({"type": "array", "maxItems": size * 1000}),
            json.dumps({"type": "string", "minLength": size * 300}),
            json.dumps({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
            json.dumps({"allOf": [{"anyOf": [{"minLength": n}, {"maxLength": n + 50}]} for n in range(min(size, 60))]}),
            json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(size)}}),
            json.dumps({"patternProperties": {f"^p{n}$": {} for n in range(size)}}),
            json.dumps({"enum": list(range(size))}),
            json.dumps({"pattern": f"^(a|b)*a(a|b){{{size}}}$"}),
            json.dumps({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
            json.dumps({"oneOf": [{"properties": {f"p{n}": {}}} for n in range(min(size, 100))]}),
            json.dumps(
                {
                    "$defs": {f"d{n}": {"type": "array", "items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(size)},
                    "$ref": "#/$defs/d0",
                }
            ),
            "".join(rng.choice(('"', "a", ":", "[", "]", "{", "}", ",", "1", '"type"')) for _ in range(40)),
        )
    )


def _yaccs(rng: random.Random) -> str:
    size = rng.choice((10, 100, 900))
    return rng.choice(
        (
            "%%\n" + "\n".join(f"r{n}: r{n + 1} r{n + 1} | 'a{n}' ;" for n in range(size)) + f"r{size}: 'z';",
            "%%\ns: s s | s s s | 'a' | %empty;",
            "%%\ns: " + " | ".join(f"'/{'a' * (n % 50 + 1)}+{n}/'" for n in range(size)) + ";",
            "%%\ns: " + " | ".join(f"'k{n}' s 'e{n}'" for n in range(size)) + " | 'x';",
            "%%\ns: s 'a' s 'b' s | '/(a|b)*c/'; SKIP: '/[abc]/';",
            "%left 'a'\n" * size + "%%\ns: s 'a' s | 'b';",
            "%nonassoc 'a' 'b'\n%%\ns: s 'a' s | s 'b' s | t; t: t 'c' | s;",
            "%%\ns: '/x+/' '/x+/' ;",
            "%%\ns: '/(((a{90}){90}){90})/' ;",
            "".join(
                rng.choice(("%%", "s", ":", "|", ";", "'a'", '"', "{", "}", "%prec", "/*", "\n")) for _ in range(40)
            ),
        )
    )


def _gbnfs(rng: random.Random) -> str:
    size = rng.choice((10, 100, 900))
    return rng.choice(
        (
            "root ::= " + "(" * size + '"a"' + ")" * size,
            'root ::= root root | "a" | ""',
            'root ::= "a" root',
            "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(size)) + f'\nr{size} ::= "a"',
            f'root ::= (("a"{{{size}}}){{{size}}}){{{size}}}',
            'root ::= ([a-z]* [a-m]* root?)* "."',
            "root ::= " + " | ".join(f"[{chr(0x4E00 + n)}-{chr(0x4F00 + n)}] root?" for n in range(size)),
            "".join(
                rng.choice(('"', "root", "::=", "|", "(", ")", "[", "]", "\n", "*", "{", "a-z")) for _ in range(40)
            ),
        )
    )


def _mutated(rng: random.Random, kind: str) -> str:
    """A small grammar with a few characters changed."""
    text = list(CASES[kind](rng).text)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        text[place : place + rng.randint(0, 3)] = rng.choice(("", "(", "{", '"', "\\", "é", "\x00", "*", "[", "99999"))
    return "".join(text)


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "regex": _regexes,
    "lark": _larks,
    "json_schema": _schemas,
    "yacc": _yaccs,
    "gbnf": _gbnfs,
}


@dataclass
class HostileOutcome:
    """The counts of a drill."""

    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest_compile_s: float = 0.0
    slowest_mask_s: float = 0.0
    slowest: str = ""


def run_hostile(count: int, *, seed: int) -> HostileOutcome:
    """Compiles ``count`` grammars and takes a few tokens under each. Any error but RequestError is the caller's."""
    rng = random.Random(seed)
    outcome = HostileOutcome()
    for _ in range(count):
        kind = rng.choice(sorted(MAKERS))
        text = _mutated(rng, kind) if rng.random() < 0.3 else MAKERS[kind](rng)
        start = time.monotonic()
        try:
            constraint = compiled(kind, text).constraint()
        except RequestError as error:
            outcome.endings[kind, "refused" if error.code == "invalid_grammar" else error.code] += 1
            _note_compile(outcome, time.monotonic() - start, f"{kind}: {text[:100]!r}")
            continue
        _note_compile(outcome, time.monotonic() - start, f"{kind}: {text[:100]!r}")
        try:
            for _ in range(TOKENS):
                start = time.monotonic()
                tokens = allowed(constraint)
                outcome.slowest_mask_s = max(outcome.slowest_mask_s, time.monotonic() - start)
                token = rng.choice(tokens)
                assert constraint.accept([token]) == 1
                if token in table().eos_ids:
                    break
            outcome.endings[kind, "usable"] += 1
        except RequestError as error:
            outcome.endings[kind, "failed by name" if error.code == "grammar_failed" else error.code] += 1
    return outcome


def _note_compile(outcome: HostileOutcome, seconds: float, name: str) -> None:
    if seconds > outcome.slowest_compile_s:
        outcome.slowest_compile_s, outcome.slowest = seconds, name
