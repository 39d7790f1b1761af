"""Yacc grammars: their notation, their lexer, precedences, and a part of C."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mistralrs.errors import RequestError
from tests.grammar.walks import accepts, compiled, generate
from tests.grammar.yacc_checks import YaccChecker, source_of

SMALL_C = (Path(__file__).parent / "small_c.y").read_text(encoding="utf-8")
PROGRAMS = (
    "int main() { return 42; }",
    "// first\nint f(int a, char *b) {\n  for (i = 0; i < 10; ++i) a += b[i] * 2; /* x */\n  return -1.5;\n}",
    'void g() { if (a == 1) return; else { b->c = "q\\"r"; } do x--; while (x); }',
    "struct p { int a; }; struct p q, *r;",
    "int f() { return x - -1 + a+b - sizeof(const int); }",
    "int f() { if (a) if (b) c; else d; }",
    "int f() { a = -b + *c - !d; return -x; }",
)
BROKEN = (
    "intx main() {}",
    "int main() { retrun 42; }",
    "int x = ;",
    "structp q;",
    "int f() { return x--1; }",
    "int f() { int return; }",
    "",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_accepted(program: str) -> None:
    assert accepts(compiled("yacc", SMALL_C), program)
    assert YaccChecker(source_of(SMALL_C)).accepts(program.encode())


@pytest.mark.parametrize("program", BROKEN)
def test_broken_programs_are_refused(program: str) -> None:
    assert not accepts(compiled("yacc", SMALL_C), program)
    assert not YaccChecker(source_of(SMALL_C)).accepts(program.encode())


def test_generated_programs_parse() -> None:
    """Few random walks come to an end; those that do are programs."""
    grammar, checker, rng = compiled("yacc", SMALL_C), YaccChecker(source_of(SMALL_C)), random.Random(2)
    assert grammar.warnings == ()
    answers = [answer for _ in range(150) if (answer := generate(grammar, rng, max_tokens=400)) is not None]
    assert len(answers) > 8
    assert [answer for answer in answers if not checker.accepts(answer)] == []


def test_a_terminal_may_or_must_be_kept_apart() -> None:
    """Before a name a blank is needed, and before a brace none: both are accepted wherever both may follow."""
    text = """%%
record: kind NAME | kind '{' '}' | kind NAME '{' '}' ;
kind: 'struct' | 'union' ;
NAME: "/[a-z]+/" ;
SKIP: "/ +/" ;
"""
    grammar = compiled("yacc", text)
    for record in ("struct a", "struct  a", "struct{}", "struct {}", "union { }", "struct a{}", "struct a { }"):
        assert accepts(grammar, record), record
    for broken in ("structa", "structa{}", "struct", "struct union"):
        assert not accepts(grammar, broken), broken


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: a declaration or %% is expected"),
        ("%%", "it has no rule"),
        ("%%\ns: 'a'", "line 2, column 7: ; at the end of the rule is expected"),
        ("%%\ns: z;", "line 2, column 4: z is neither a rule nor a terminal"),
        ("%union\n%%\ns: 'a';", "line 1, column 1: the declaration %union is not supported"),
        ("%%\ns 'a';", "line 2, column 3: a colon is expected"),
        ("%%\ns: '/(?=a)/';", "line 2, column 4: a look-ahead is not supported"),
        ("%%\ns: 'x' |\n  '/[/';", 'line 3, column 3: "[" is not a regular expression'),
        ("%start q\n%%\ns: 'a';", "line 1, column 8: there is no rule named q"),
        ("%%\ns: s 'a';", "no text matches its rule s"),
        ("%%\nSKIP: s; s: 'a';", "line 2, column 7: an alternative of SKIP is one terminal"),
        ("%%\ns: 'a' { x ;", "line 2, column 8: the action has no end"),
        ("%%\ns: 'ab\n';", 'line 2, column 4: "\'" is not expected'),
        ("%%\ns: 'a' 'b' | 'c' 'ab';", "line 2, column 4: a and b behind it would be read together"),
        ("%%\ns: 'a' x; x: 'b' 'c' | 'ab';", "line 2, column 4: a and b behind it would be read together"),
        (
            "%nonassoc '<'\n%%\ns: e; e: t | '0'; t: e '<' e | 'x';",
            "%nonassoc cannot be honoured in t",
        ),
    ],
)
def test_errors_have_their_place(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled("yacc", text)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("%%\ns: 'a' | s ',' 'a' { nested { } };", ["a", "a,a"], ["", "a,", " a"]),
        ("%token FOO\n%start s\n%%\nt: FOO; s: FOO t %empty;\n%%\nany $text", ["FOOFOO"], ["FOO"]),
        ("%%\ns: ID | 'if' ID; ID: '/[a-z]+/'; SKIP: '/ +/';", ["if x", "x", " iffy"], ["if", "if if"]),
        ("%%\ns: '/ab?/' 'c' | '/a[x-z]+/';", ["ac", "abc", "axz"], ["a", "axc"]),
        ("%%\ns: %empty | 'x';", ["", "x"], ["xx"]),
        ("%%\ns: '\"' | \"'\" | '\\n' | '//' | '/';", ['"', "'", "\\n", "//", "/"], ["\n"]),
        ("%%\ns: '/a*/' 'b';", ["ab"], ["b"]),
        (
            "%left '+'\n%nonassoc '<'\n%%\ne: e '+' e | e '<' e | '(' e ')' | 'x';",
            ["x<x", "x+x+x", "x<x+x<x", "(x<x)<x"],
            ["x<x<x", "x+x<x<x"],
        ),
        ("%nonassoc '<'\n%left '+'\n%%\ne: e '+' e | e '<' e | 'x';", ["x+x<x+x"], ["x<x+x<x"]),
        ("%nonassoc L\n%nonassoc 'e'\n%%\ns: 'i' s %prec L | 'i' s 'e' s | 'x';", ["iixex", "ixeixex"], ["xex"]),
    ],
)
def test_languages(text: str, yes: list[str], no: list[str]) -> None:
    grammar = compiled("yacc", text)
    assert grammar.warnings == ()
    assert [answer for answer in yes if not accepts(grammar, answer)] == []
    assert [answer for answer in no if accepts(grammar, answer)] == []


def test_conflicts_are_served_with_a_warning() -> None:
    grammar = compiled("yacc", "%%\ns: 'i' s | 'i' s 'e' s | 'x';")
    assert "1 conflict" in grammar.warnings[0]
    assert accepts(grammar, "iixex")


def test_operators_with_one_operand_below_others_are_served_with_a_warning() -> None:
    grammar = compiled("yacc", "%right '!'\n%nonassoc '<'\n%%\ne: e '<' e | '!' e | 'x';")
    assert "need parentheses" in grammar.warnings[0]
    assert accepts(grammar, "!x<x")
    assert not accepts(grammar, "x<x<x")
