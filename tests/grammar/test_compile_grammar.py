"""Kinds of grammars, their errors, the deadline and the cache."""

from __future__ import annotations

import json
import threading

import pytest

from mistralrs.errors import RequestError
from mistralrs.grammar import compile_grammar as module
from mistralrs.grammar.compile_grammar import KINDS, GrammarCache, validate_grammar
from mistralrs.grammar.library_limits import within
from mistralrs.grammar.translation import MAX_BYTES
from tests.grammar.walks import TIMEOUT_S, accepts, compiled, table


def refusal(kind: str, text: str) -> RequestError:
    """Returns the error; both ways to check a grammar give the same one."""
    with pytest.raises(RequestError) as caught:
        validate_grammar(kind, text, timeout_s=TIMEOUT_S)
    with pytest.raises(RequestError) as again:
        compiled(kind, text)
    assert caught.value.message == again.value.message
    assert (caught.value.code, caught.value.param) == ("invalid_grammar", "grammar")
    return caught.value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "(?=a)b", "line 1, column 1: a look-ahead is not supported"),
        ("regex", "a\n(?<!a)b", "line 2, column 1: a look-behind is not supported"),
        ("regex", r"\bword", r"the word boundary \\b is not supported"),
        ("regex", r"(a)\1", "line 1, column 4: a back-reference is not supported"),
        ("regex", r"(?P<n>a)(?P=n)", "a back-reference is not supported"),
        ("regex", "(?>a)", "an atomic group is not supported"),
        ("regex", r"(?-u:\xff)", "can match invalid UTF-8"),
        ("regex", "a^b", "not a regular expression that is supported"),
        ("regex", "(", "unclosed group"),
        ("regex", "a{3,1}", "invalid repetition"),
        ("regex", "[a&&b]", "no text matches it"),
        ("choice", "[]", "not a JSON array of texts"),
        ("choice", "[1]", "not a JSON array of texts"),
        ("choice", "{", "not a JSON array of texts"),
        ("choice", '["\\ud800"]', "half of a surrogate pair"),
        ("lark", 'start: "a"\nx[stop="a"]: /b/', "line 2, column 1: the attribute stop is not supported"),
        ("lark", '%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "allow_invalid_utf8 is not supported"),
        ("lark", '{"grammars": []}', "line 1, column 1: a rule is expected"),
        ("lark", "start: nothing", "unknown name"),
        ("lark", 'start: %json {"uniqueItems": true}', "line 1, column 8: /uniqueItems: uniqueItems is not supported"),
        ("lark", "start: %json [", "no JSON follows"),
        ("lark", 'start: a\na: a "x"', "no text matches it"),
        ("lark", "\n".join(["start: r0", *(f'r{n}: "a"' for n in range(1001))]), "more than 1000 rules"),
        ("gbnf", 'root ::= "a', "line 1, column 10: it has no end"),
        ("gbnf", "root ::= x", "line 1, column 10: there is no rule named x"),
        ("gbnf", 'x ::= "a"', "no rule named root"),
        ("gbnf", 'root ::= ("a"\nx ::= "b"', "the group has no end"),
        ("gbnf", 'root ::= "a"\nroot ::= "b"', "line 2, column 1: the rule root is there twice"),
        ("gbnf", 'root ::= "a"{3,1}', "is no number of repetitions"),
        ("gbnf", "root ::= [z-a]", "ends before it begins"),
        ("gbnf", "root ::= <think>", "tokens in a GBNF grammar are not supported"),
        ("json_object", "{", "json_object takes no text"),
        ("regex", "\ud800", "half of a surrogate pair"),
        ("regex", "a" * (MAX_BYTES + 1), "more than"),
    ],
)
def test_errors_say_what_and_where(kind: str, text: str, message: str) -> None:
    assert message.replace("\\\\", "\\") in refusal(kind, text).message


def test_an_unknown_kind_is_refused_with_those_that_exist() -> None:
    error = refusal("yaml", "a: b")
    assert "yaml" in error.message
    assert error.hint is not None
    assert all(kind in error.hint for kind in KINDS)


@pytest.mark.parametrize(
    ("kind", "text", "yes", "no"),
    [
        ("regex", r"\d{2}[\d]\w\s", ["123a ", "123_\n"], ["12٣a ", "123é ", "123a\u2003"]),
        ("regex", r"\D[^\d]\W\S", ["٣٣éé", "aa.."], ["1aéé", "aaaé"]),
        ("yacc", "%%\na: '/[0-9]\\d*/';", ["12"], ["1٣"]),
        ("regex", "a|b$", ["a", "b"], ["", "ab", "a\n"]),
        ("regex", "^a|^b$", ["a", "b"], ["ab"]),
        ("regex", "", [""], ["a"]),
        ("regex", ".", ["é", "😀"], ["\n", b"\xc3", b"\xff"]),
        ("regex", "(?s:.)", ["\n"], [b"\xff"]),
        ("regex", r"\d|\p{Nd}x", ["٣x", "3"], ["x", "٣"]),
        ("regex", "[^a]", ["é", "\n"], ["a", b"\xe9"]),
        ("regex", "(?i)straße", ["STRAßE"], []),
        ("regex", "a+?", ["a", "aaa"], [""]),
        ("regex", "/", ["/"], []),
        ("choice", '["yes", "no", "", "a\\"/\\\\", "\\u007f"]', ["yes", "no", "", 'a"/\\', "\x7f"], ["y", "yesno"]),
        ("lark", 'start: "a" b*\nb: /[0-9]/ "," // end', ["a", "a1,2,"], ["a1"]),
        ("lark", 'start: %json {"type": "integer", "x-guidance": {"lenient": true}}', ["12"], ["a", "1.5"]),
        ("lark", '// %json is "not" one\nstart: "%json [" # "', ["%json ["], []),
        ("gbnf", 'root ::= "a" [b-d]* ("e" | "f"){2} # x\n', ["aee", "abcdef"], ["ae", "aeee"]),
        ("gbnf", 'root ::= list\nlist ::= "(" list? ")" | [^()]+ "b"', ["((xb))", "()", "漢bb"], ["(", "(x)"]),
        ("gbnf", 'root ::= "\\x41\\u00e9\\n" |\n  .{2}', ["Aé\n", "漢\n"], ["A"]),
        ("json_object", "", ["{}", '{"a": [1, null]}'], ["[]", "1", " {}"]),
    ],
)
def test_languages(kind: str, text: str, yes: list[str], no: list[str | bytes]) -> None:
    grammar = compiled(kind, text)
    assert validate_grammar(kind, text, timeout_s=TIMEOUT_S) == grammar.warnings == ()
    assert [answer for answer in yes if not accepts(grammar, answer)] == []
    assert [answer for answer in no if accepts(grammar, answer)] == []


def test_a_control_token_can_be_checked_with_its_vocabulary_only() -> None:
    text = 'start: "a" <|im_sep|>'
    validate_grammar("lark", text, table=table(), timeout_s=TIMEOUT_S)
    with pytest.raises(RequestError, match="im_sep"):
        validate_grammar("lark", text, timeout_s=TIMEOUT_S)


def test_work_that_takes_too_long_is_refused_and_gives_its_place_back() -> None:
    for _ in range(5):
        release = threading.Event()
        with pytest.raises(RequestError, match=r"longer than 0\.01 s"):
            within(0.01, lambda release=release: release.wait(TIMEOUT_S))  # type: ignore[misc]
        release.set()
    assert within(TIMEOUT_S, lambda: 3) == 3


def test_only_time_of_the_processor_counts() -> None:
    def compute() -> int:
        while not ended.is_set():
            pass
        return 3

    def wait() -> int:
        ended.wait(0.2)
        return 3

    ended = threading.Event()
    assert within(0.1, wait) == 3  # as on a machine that does other work
    with pytest.raises(RequestError, match=r"longer than 0\.1 s"):
        within(0.1, compute)
    ended.set()


def test_few_grammars_are_compiled_at_once() -> None:
    release, started = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        started.release()
        release.wait(TIMEOUT_S)

    threads = [threading.Thread(target=within, args=(TIMEOUT_S, work)) for _ in range(2)]
    for thread in threads:
        thread.start()
        started.acquire()
    with pytest.raises(RequestError, match="other grammars are being compiled"):
        within(0.05, lambda: None)
    release.set()
    for thread in threads:
        thread.join()


def test_an_error_of_the_work_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        within(TIMEOUT_S, lambda: 1 // 0)


def test_the_cache_keeps_the_grammars_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    original = module.compile_grammar

    def counted(kind: str, text: str, *arguments: object, **options: object) -> object:
        texts.append(text)
        return original(kind, text, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "compile_grammar", counted)
    cache = GrammarCache(table(), max_grammars=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cache.get("regex", text, timeout_s=TIMEOUT_S)
    assert texts == ["a", "b", "c", "b"]
    assert len(cache) == 2
    first, second = (cache.get("regex", "b", timeout_s=TIMEOUT_S).constraint() for _ in range(2))
    assert first.accept([table().tokens_of(b"b")[0]]) == 1
    assert second.accept([table().tokens_of(b"b")[0]]) == 1


def test_the_cache_is_bounded_by_its_texts_too() -> None:
    cache = GrammarCache(table(), max_bytes=10)
    for number in range(5):
        cache.get("choice", json.dumps([f"text {number}"]), timeout_s=TIMEOUT_S)
    assert len(cache) == 1
