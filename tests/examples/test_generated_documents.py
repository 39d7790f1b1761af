"""The parts of the documents that scripts write: pictures, tables and the list of error codes."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from mistralrs.server.errors import STATUSES, answer_to
from tests.serving import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODES = {
    code: int(status)
    for code, status in re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \| \S.*? \| \S.*? \|$", GUIDE, re.MULTILINE)
}


def script(name: str) -> Any:
    """A program of `scripts/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Tables


@pytest.mark.parametrize(("document", "block"), [("README.md", "measured"), ("docs/performance.md", "ahead")])
def test_the_parts_of_documents_that_figures_decide_are_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], document: str, block: str
) -> None:
    main = script("write_readme_tables").main
    monkeypatch.setattr(sys, "argv", ["write", "--check"])
    assert main() == 0, capsys.readouterr().err
    shutil.copytree(ROOT / "docs" / "reports", tmp_path / "docs" / "reports")
    for each in ("README.md", "docs/performance.md"):
        shutil.copy(ROOT / each, tmp_path / each)
    fresh = (ROOT / document).read_text(encoding="utf-8")
    stale = re.sub(rf"(?s)(<!-- {block}: begin -->).*(<!-- {block}: end -->)", r"\1\nold\n\2", fresh)
    (tmp_path / document).write_text(stale, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["write", "--check", "--root", str(tmp_path)])
    assert (main(), f"{document} is out of date" in capsys.readouterr().err) == (1, True)
    monkeypatch.setattr(sys, "argv", ["write", "--root", str(tmp_path)])
    assert main() == 0
    assert (tmp_path / document).read_text(encoding="utf-8") == fresh


def record(engine: str, *, threads: int = 2, **cells: float | None) -> dict[str, Any]:
    name, seconds = "synthetic-1.1b-q4_k_m.gguf", 2.0 if engine == "ours" else 1.0
    return {"file": name, "engine": engine, "threads": threads, "cells": cells, "first_token_s": seconds}


def test_who_is_ahead_is_named() -> None:
    records = [
        record("llama.cpp", pp512=100, tg128=22),
        record("ours", pp512=100, tg128=10),
        record("ours", pp512=300, tg128=12),
        record("ours", pp512=50, tg128=6, threads=1),
        {**record("ours", pp512=1), "file": "another.gguf"},
    ]
    lines = list(script("write_readme_tables").measured([*records, record("OpenVINO", pp512=None)]))
    assert lines[0] == "| | mistralrs | llama.cpp | OpenVINO GenAI |"
    assert "| synthetic 1.1B Q4_K_M, prompt of 512 | **200** | 100 | - |" in lines
    assert "| answer of 128 | 11 | **22** | - |" in lines
    [ahead] = [line for line in lines if line.startswith("- llama.cpp is ahead in:")]
    assert "answer of 128 (2.00 times as fast)" in ahead
    assert "first token (2.00 times as fast)" in ahead
    assert "prompt" not in ahead
    assert not any("another" in line for line in lines)


def test_each_file_in_which_another_engine_is_ahead_is_named() -> None:
    records = [
        {**record("ours", **{"tg128@2000": 10, "b16": 10}), "peak_bytes": 3e9},
        {**record("llama.cpp", **{"tg128@2000": 15, "b16": 9}), "peak_bytes": 2e9},
        {**record("ours", b16=1), "file": "another.gguf", "first_token_s": 0.5},
        {**record("llama.cpp", b16=2), "file": "another.gguf"},
    ]
    ahead = script("write_readme_tables").ahead
    assert list(ahead(records)) == [
        "- llama.cpp, answer of 128 behind 2,000 tokens: synthetic-1.1b-q4_k_m 1.50",
        "- llama.cpp, 16 answers at once: another 2.00",
        "- llama.cpp, first token: synthetic-1.1b-q4_k_m 2.00",
        "- llama.cpp, peak memory: synthetic-1.1b-q4_k_m 1.50",
    ]
    assert list(ahead(records[:1])) == ["In the last run none was ahead in any cell."]


def test_figures_of_fewer_tokens_are_named() -> None:
    records = [record("ours", pp512=100), {**record("mistral.rs", pp512=2), "shortened": {"pp512": 32}}]
    *_, line = script("write_readme_tables").measured(records)
    assert line == "- mistral.rs got 32 tokens where a row has more."


def test_precisions_have_their_speed_and_their_distance() -> None:
    def speed(precision: str, prompt: float) -> dict[str, Any]:
        name = "SmolLM2-135M-Instruct.Q4_1.gguf"
        return {"file": name, "precision": precision, "prompt": [1, prompt, 1000], "answer": [10]}

    means = {"fast": 0.0014, "default": 0.00061, "high": 0.0000012, "llama.cpp": 0.0033}
    apart = {"file": "gemma-3-270m.Q4_K_M.gguf", "engines": {name: {"mean": mean} for name, mean in means.items()}}
    speeds = [speed("fast", 120), speed("default", 100), speed("high", 60)]
    lines = list(script("write_readme_tables").precisions(speeds, [apart]))
    assert [line.split("|")[3:-1] for line in lines[2:]] == [
        [" 1.20 ", " 1.00 ", " 0.0014 "],
        [" 1.00 ", " 1.00 ", " 0.00061 "],
        [" 0.60 ", " 1.00 ", " 0.000001 "],
        ["  ", "  ", " 0.0033 "],
    ]


def test_every_format_and_architecture_is_in_the_tables() -> None:
    from mistralrs.models.registry import ARCHITECTURES
    from mistralrs.quant.types import BY_GGML_ID

    tables = script("write_readme_tables")
    assert {name.strip() for line in list(tables.formats())[2:] for name in line.split("|")[1].split(",")} == {
        kind.name for kind in BY_GGML_ID.values()
    }
    assert [line.split("|")[1].strip() for line in list(tables.architectures())[2:]] == list(ARCHITECTURES)
    assert all(type_["file"] for type_ in json.loads((ROOT / "docs" / "reports" / "compare.json").read_text()))


# Pictures


@pytest.mark.parametrize("name", ["chat", "pipe", "first-start"])
def test_a_picture(name: str) -> None:
    path = ROOT / "docs" / "pictures" / f"{name}.svg"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 60_000
    assert set(re.findall(r"\w+://[^\s\"')<]+", text)) == {"http://www.w3.org/2000/svg"}
    words = " ".join("".join(ElementTree.fromstring(text).itertext()).replace("\xa0", " ").split())
    [scene] = [scene for scene in script("record_screens").SCENES if scene.name == name]
    assert all(" ".join(expected.split()) in words for expected in scene.expected)
    [alt] = re.findall(rf"!\[([^\]]+)\]\(docs/pictures/{name}\.svg\)", README)
    assert len(alt.split()) > 5


def test_a_session_is_drawn(default_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = script("record_screens")
    monkeypatch.setattr(recorder, "MODEL", default_model.resolve())
    [scene] = [scene for scene in recorder.SCENES if scene.name == "first-start"]
    screen = recorder.record(scene)
    shown = "\n".join(screen.display)
    assert [text for text in scene.expected if text not in shown] == []
    drawn = recorder.picture(screen, scene)
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")
    assert "".join(ElementTree.fromstring(drawn).itertext()).count("Paris") == 1


# The first minutes


def test_the_report_of_the_first_minutes_is_of_no_machine() -> None:
    text = (ROOT / "docs" / "reports" / "first-minutes.md").read_text(encoding="utf-8")
    recorder = script("first_minutes")
    assert re.findall("^## (.*)", text, re.MULTILINE) == [step.title for step in recorder.STEPS]
    assert not re.search(r"(https?|file)://(?!127\.0\.0\.1)|/(root|home|tmp|work|opt)\b", text)
    screens = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(screens) >= len(recorder.STEPS)
    assert all(len(screen.splitlines()) <= recorder.LINES for screen in screens)
    assert "The capital of France is Paris." in text


def test_a_machine_s_names_are_left_out() -> None:
    recorder = script("first_minutes")
    shown = (
        "Looking in links: /opt/wheels\n~/a/b https://index.example/simple /usr/lib/python3/x.py http://127.0.0.1:1/v1"
    )
    cleaned = recorder.cleaned(f"{shown} {os.uname().nodename} {Path.home()}/c", {str(Path.home()): "~"})
    assert cleaned == "Looking in links: ADDRESS\n~/a/b ADDRESS .../x.py http://127.0.0.1:1/v1 HOST ~/c"


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_step_is_played_in_tmux(tmp_path: Path) -> None:
    recorder = script("first_minutes")
    slow = tmp_path / "bash"
    slow.write_text(f'#!/bin/sh\nsleep 0.3\nexec {shutil.which("bash")} "$@"\n', encoding="utf-8")
    slow.chmod(0o755)
    path = os.pathsep.join((str(tmp_path), os.environ["PATH"]))
    tmux = recorder.Tmux(tmp_path, {**os.environ, "PATH": path, "PS1": "$ ", "TERM": "xterm-256color"})
    try:
        [(_, screen)] = recorder.play(tmux, recorder.Step("", "echo one $((1 + 1))"))
    finally:
        tmux.close()
    assert screen.splitlines() == ["$ echo one $((1 + 1))", "one 2", "$"]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_shell_without_a_prompt_is_an_error_with_its_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = script("first_minutes")
    monkeypatch.setattr(recorder, "PATIENCE_S", 0.1)
    monkeypatch.setattr(recorder.Tmux, "screen", lambda _: "bash: error\nno dollar")
    with pytest.raises(TimeoutError, match=r"no prompt; the screen:\nbash: error\nno dollar$"):
        recorder.Tmux(tmp_path, {**os.environ, "TERM": "xterm-256color"})
    assert subprocess.run(["tmux", "-S", tmp_path / "tmux", "ls"], capture_output=True).returncode == 1


# Error codes


def codes_in_the_source() -> set[str]:
    """The codes that errors are made with anywhere in the library, and those that have a status."""
    found = set(STATUSES)
    for path in (ROOT / "mistralrs").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if re.search(r"\bcode\b", text) else ():
            for value in values_of_codes(node):
                branches = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                found |= {
                    each.value for each in branches if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    return found


def values_of_codes(node: ast.AST) -> list[ast.expr | None]:
    """The values that a call, an assignment or a default gives to something named ``code``."""
    if isinstance(node, ast.keyword) and node.arg == "code":
        return [node.value]
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "code":
        return [node.value]
    if isinstance(node, ast.FunctionDef):
        named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        return [default for argument, default in named if argument.arg == "code"]
    return []


def test_each_error_code_has_an_entry() -> None:
    assert set(CODES) == codes_in_the_source()
    assert len(CODES) > 40
    assert {code: status for code, status in CODES.items() if code in STATUSES} == {
        code: status for code, (status, _) in STATUSES.items()
    }


@pytest.mark.parametrize("kind", ["RequestError", "EngineError"])
def test_other_codes_have_the_status_of_their_errors(kind: str) -> None:
    from mistralrs import errors

    found = {
        code
        for code, status in CODES.items()
        if code not in STATUSES and answer_to(getattr(errors, kind)("", code=code)).status == status
    }
    assert {"RequestError": "invalid_value", "EngineError": "internal_error"}[kind] in found


def test_each_exit_code_has_a_section() -> None:
    from mistralrs import errors
    from mistralrs_cli.terminal import exits

    own = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    signals = {exits.INTERRUPTED, exits.CLOSED_OUTPUT, exits.HUNG_UP, exits.TERMINATED}
    listed = {int(code) for title in re.findall(r"^### ([\d, ]+):", GUIDE, re.MULTILINE) for code in title.split(",")}
    assert listed == own | signals
