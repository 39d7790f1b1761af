"""The command with the default model: the whole way from a command line to text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.terminal import ROOT

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(default_model: Path) -> Run:
    def run(*arguments: str, stdin: str | None = None) -> tuple[str, str]:
        """stdout and stderr of a run that succeeds."""
        result = subprocess.run(
            [sys.executable, "-m", "mistralrs_cli", *arguments],
            env={**os.environ, "MISTRALRS_DEFAULT_MODEL": str(default_model)},
            cwd=ROOT,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout, result.stderr

    return run


def test_one_prompt(run: Run, default_model: Path) -> None:
    out, _ = run("--prompt", "What is the capital of France?")
    assert "Paris" in out
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    words = ("--max-tokens", "2", "--prompt", "What is the capital of France?", "gguf", "-f", str(default_model))
    assert out.startswith(run(*words)[0].rstrip("\n"))


def test_copies_and_no_kv_cache_give_the_same_greedy_text(run: Run) -> None:
    greedy = ("--temperature", "0", "--max-tokens", "4", "--prompt", "Name a colour.")
    alone, _ = run(*greedy)
    copies, _ = run(*greedy, "--prompt-concurrency", "2")
    assert copies.split("=" * 23 + "\n") == [alone] * 2
    recomputed, log = run("--no-kv-cache", "--log-level", "debug", *greedy)
    assert recomputed == alone
    assert re.search(r"Prompt\[\d+\] Completion\[\] - [\d.]+ms", log)


def test_answers_match_their_grammar(run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    properties = {"big": {"type": "boolean"}}
    schema.write_text(json.dumps({"type": "object", "properties": properties, "required": ["big"], "maxProperties": 1}))
    out, _ = run("--schema", str(schema), "--temperature", "0", "--max-tokens", "40", "--prompt", "Is Paris big?")
    assert list(json.loads(out)) == ["big"]
    assert set(run("--choice", "oui", "--choice", "nö", "-i", stdin="Hi\nHo\n")[0].splitlines()) <= {"oui", "nö"}


def test_second_turn_reuses_the_first(run: Run) -> None:
    out, err = run("-i", "--max-tokens", "4", "--stats", stdin="Hello\nAnd again\n")
    assert len(out.splitlines()) >= 2
    cached = [int(count) for count in re.findall(r"cached (\d+)/", err)]
    assert cached[0] == 0
    assert cached[1] >= 16


def cached_tokens(statistics: str) -> list[tuple[int, int]]:
    """The cached tokens and all tokens of each prompt."""
    found = re.findall(r"cached ([\d ]+)/([\d ]+) ·", statistics)
    return [(int(cached.replace(" ", "")), int(total.replace(" ", ""))) for cached, total in found]


def test_a_resumed_chat_computes_only_what_is_new(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    story = " ".join(f"The {number}th day was as long as the others." for number in range(60))
    chat = [{"role": "user", "content": f"Hear my story. {story}"}, {"role": "assistant", "content": "A fine one."}]
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    run("chats", "import", str(tmp_path / "chat.json"))
    words = ("--stats", "--temperature", "0", "--max-tokens", "24", "-i", "--resume")
    first, statistics = run(*words, stdin="How long was it?\nAnd how many days?\n")
    (fresh, before), (_, last) = cached_tokens(statistics)
    assert (fresh, before > 500) == (0, True)
    resumed, statistics = run(*words, stdin="And the nights?\n")
    ((cached, total),) = cached_tokens(statistics)
    assert total > last
    assert last - 16 <= cached < total  # whole blocks of 16 tokens; the new question is computed
    run("chats", "export", "1", "--format", "json", "--out", str(tmp_path / "all.json"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    (tmp_path / "again.json").write_text(json.dumps(json.loads((tmp_path / "all.json").read_text())["messages"][:-2]))
    run("chats", "import", str(tmp_path / "again.json"))
    anew, statistics = run(*words, stdin="And the nights?\n")
    assert cached_tokens(statistics)[0][0] == 0
    assert anew == resumed
    assert first


def test_bench(run: Run) -> None:
    out, _ = run("bench", "-p", "32", "-n", "4", "-c", "1,2", "-r", "1", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["test"] for record in records] == ["tg4", "pp32", "tg4", "pp32"]
    assert all(record["tok_s_median"] > 0 for record in records)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ '%10000000000d' % 1 }}", "more than 256 MiB of memory"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out a message of the role 'user'"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(default_model: Path, template: str, reason: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mistralrs_cli", "--prompt", "hi", "--chat-template", template],
        env={**os.environ, "MISTRALRS_DEFAULT_MODEL": str(default_model)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 4
    assert result.stdout == ""
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_a_prompt_that_is_far_too_long_is_cut_or_refused(run: Run, default_model: Path) -> None:
    words = "the number is 7 " * 400_000
    _, err = run("--prompt", "-", "--truncate-sequence", "--max-tokens", "8180", "--seed", "1", stdin=words + "Why?")
    assert "were cut" in err
    with pytest.raises(AssertionError, match="at least"):
        run("--prompt", "-", stdin=words)


@pytest.mark.native
def test_an_answer_needs_neither_torch_nor_numpy(default_model: Path) -> None:
    command = ["--prompt", "Hi", "--max-tokens", "2", "--temperature", "0.7", "gguf", "-f", str(default_model)]
    code = f"import sys; from mistralrs_cli.app import main; main({command!r}); "
    code += "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
