"""The options that say what an answer must match: one at most, checked before a model is loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mistralrs.api.options.declarations import DECLARED
from mistralrs.errors import UsageError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.grammar_option import FILE_KINDS
from mistralrs_cli.arguments.invocation import ChatJob, Invocation, PromptJob, resolve

SCHEMA = '{"type": "integer"}'
TEXTS = {
    "regex": "[0-9]+",
    "yacc": "%%\nS: 'a' ;",
    "lark": 'start: "a"',
    "gbnf": 'root ::= "a"',
    "json_schema": SCHEMA,
    "choice": '["a", "b"]',
    "structural_tag": json.dumps({"structures": [{"begin": "<f>", "end": "</f>"}], "triggers": ["<f>"]}),
}


def asked(*words: str) -> GrammarText | None:
    """The grammar of a prompt and of a chat with these options."""
    found = []
    for mode in (["--prompt", "hi"], ["-i"]):
        parsed = parse([*words, *mode, "gguf", "-m", "", "-f", __file__])
        assert parsed is not None
        task = resolve(parsed)
        assert isinstance(task, Invocation)
        assert isinstance(task.job, PromptJob | ChatJob)
        found.append(task.job.grammar)
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("yacc", ".y"), ("yacc", ".yacc"), ("lark", ".lark"), ("gbnf", ".GBNF"), ("json_schema", ".json")],
)
def test_a_kind_by_the_ending(tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / f"a:b{ending}"
    path.write_text(TEXTS[kind], encoding="utf-8")
    assert asked("--grammar", str(path)) == GrammarText(kind, TEXTS[kind])


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_a_kind_by_its_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "g.y"
    path.write_text(TEXTS[kind] + "\n", encoding="utf-8")
    text = TEXTS[kind] if kind == "regex" else TEXTS[kind] + "\n"
    assert asked("--grammar", f"{kind}:{path}") == GrammarText(kind, text)


def test_the_other_options(tmp_path: Path) -> None:
    path = tmp_path / "schema"
    path.write_text(SCHEMA, encoding="utf-8")
    assert asked("--schema", str(path)) == GrammarText("json_schema", SCHEMA)
    assert asked("--regex", "") == GrammarText("regex", "")
    assert asked("--choice", "a,b") == GrammarText("choice", '["a,b"]')
    assert asked() is None
    assert not any(DECLARED[name].is_shared for name in ("grammar", "regex", "schema", "choice"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--regex", "a", "--choice", "a"], "--regex and --choice exclude each other"),
        (["--schema", "{path}", "--grammar", "{path}"], "--grammar and --schema exclude each other"),
        (["--grammar", "{path}"], "--grammar {path}: the file's kind is unknown"),
        (["--grammar", "bnf:{path}"], "--grammar bnf:{path}: the file's kind is unknown"),
        (["--grammar", "json_object:{path}"], "the file's kind is unknown"),
        (["--grammar", "lark:{path}.gone"], "--grammar {path}.gone"),
        (["--grammar", "lark:{path}"], "--grammar lark:{path}: "),
        (["--schema", "{path}"], "--schema {path}: the schema is not JSON"),
        (["--regex", r"\b"], r"--regex: "),
    ],
)
def test_refused(tmp_path: Path, words: list[str], said: str) -> None:
    path = tmp_path / "broken"
    path.write_text("start: (", encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        asked(*(word.replace("{path}", str(path)) for word in words))
    assert said.replace("{path}", str(path)) in refused.value.message


def test_only_answers_have_grammars() -> None:
    for words in (["--port", "0"], ["bench"]):
        parsed = parse(["--regex", "a", *words])
        assert parsed is not None
        with pytest.raises(UsageError, match="--regex needs -i or --prompt"):
            resolve(parsed)


def test_a_warning_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "g.y"
    path.write_text("%%\nE: E '+' E | 'x' ;", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "mistralrs.cli"):
        asked("--grammar", str(path))
    assert "the grammar has 1 conflicts" in caplog.text


def test_control_tokens_are_checked_by_the_model(tmp_path: Path) -> None:
    path = tmp_path / "g.lark"
    path.write_text("start: <|im_end|>", encoding="utf-8")
    assert asked("--grammar", str(path)) == GrammarText("lark", "start: <|im_end|>")
