"""``mistralrs config``: every option with its value, its origin and what it was stronger than."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mistralrs.api.options.declarations import DECLARED
from tests.cli.in_process import InProcess, running


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    with running(tmp_path, capsys, monkeypatch) as command:
        yield command


def options(run: InProcess, *words: str) -> dict[str, dict[str, Any]]:
    code, out, err = run(*words, "config", "--json")
    assert (code, err) == (0, "")
    return {each["option"]: each for each in json.loads(out)["options"]}


def test_each_origin_is_named_and_the_strongest_wins(run: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.configure('temperature = 0.5\nthreads = 3\ntop-k = 7\nkv-memory = "4G"\n')
    monkeypatch.setenv("MISTRALRS_THREADS", "2")
    monkeypatch.setenv("MISTRALRS_TOP_K", "9")
    found = options(run, "--threads", "1")
    assert set(found) == {each.key for each in DECLARED.values() if each.key}
    places = {name: tuple(found[name][part] for part in ("value", "origin", "written", "over")) for name in found}
    assert places["threads"] == (1, "flag", "--threads", ["MISTRALRS_THREADS", f"{path}: threads"])
    assert places["top-k"] == (9, "environment", "MISTRALRS_TOP_K", [f"{path}: top-k"])
    assert places["temperature"] == (0.5, "file", f"{path}: temperature", [])
    assert places["kv-memory"] == (4 << 30, "file", f"{path}: kv-memory", [])
    assert places["top-p"] == (0.1, "default", None, [])
    assert found["max-tokens"]["default"] == "4096, 128 with --prompt and --prompt-file"


def test_the_page_has_what_was_given_first(run: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"config file  none; it would be {run.home}/.config/mistralrs/config.toml\n" in run("config")[1]
    path = run.configure("stats = true\n")
    monkeypatch.setenv("MISTRALRS_NO_NATIVE", "1")
    code, out, err = run("--threads", "2", "config")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[:3] == [
        f"config file  {path}",
        "MISTRALRS_NO_NATIVE=1  (1: compute without the kernels, slower.)",
        "",
    ]
    assert lines[3].split() == ["threads", "2", "--threads"]
    assert lines[4].split() == ["stats", "on", f"{path}:", "stats"]
    assert [line.split()[-1] for line in lines[5:]] == ["default"] * (len(lines) - 5)


def test_secrets_are_hidden(run: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    run.configure('token-source = "literal:hf_confidential"\n')
    monkeypatch.setenv("MISTRALRS_API_KEY", "confidential,confidential-too")
    found = options(run)
    assert found["api-key"]["value"] == ["(hidden)"] * 2
    assert found["token-source"]["value"] == "literal:(hidden)"
    assert "confidential" not in run("config")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-i", "config"], "-i and config exclude each other"),
        (["--no-stdin", "config"], "--no-stdin needs --prompt"),
        (["--top-p", "2", "config"], "--top-p 2.0 is out of range"),
        (["config", "x"], "unexpected extra argument"),
    ],
)
def test_refusals(run: InProcess, words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert "\nhint: " in err
