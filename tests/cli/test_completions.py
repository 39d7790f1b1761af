"""Completion: the candidates for each kind of word, and the function of bash that asks for them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mistralrs.api.selectors.model_selector import SELECTORS
from mistralrs.quant.quantize import ISQ_TYPES
from mistralrs_cli.chat_storage.chat_store import ChatStore
from mistralrs_cli.chat_storage.saved_chats import import_chats
from mistralrs_cli.completion.shell_scripts import FILES, SCRIPTS
from tests.cli.in_process import InProcess, running
from tests.cli.terminal import ROOT, environment


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with running(tmp_path, capsys, monkeypatch) as command:
        yield command


def completed(run: InProcess, *words: str) -> list[str]:
    code, out, err = run("completions", "bash", "--", *words)
    assert (code, err) == (0, "")
    return [line.partition("\t")[0] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["llama"], ["llama", "llama-gguf", "llama-ggml"]),
        (["-i", "--threads", "2", "doc"], ["doctor"]),
        (["--threads=2", "doc"], ["doctor"]),
        (["--the"], ["--theme"]),
        (["--theme", ""], ["auto", "light", "dark"]),
        (["--log-level", "w"], ["warning"]),
        (["--no-mer"], ["--no-merge"]),
        (["bench", "--j"], ["--json"]),
        (["bench", "--repetitions", "2", "llama-gg"], ["llama-gguf", "llama-ggml"]),
        (["bench", "llama-gguf", "--gq"], []),
        (["llama-ggml", "--gq"], ["--gqa"]),
        (["chats", "ex"], ["export"]),
        (["chats", "export", "1", "--format", ""], ["md", "json", "html"]),
        (["adapter", "convert", "--to", "p"], ["peft"]),
        (["help", "doc"], ["doctor"]),
        (["completions", ""], ["bash", "zsh", "fish"]),
        (["inspect", ""], [FILES]),
        (["gguf", "-f", "mo"], [FILES]),
        (["--lora", "music=x", "--lora", "some/law", "--adapter", ""], ["music", "law", "none"]),
        (["--isq", "q8"], ["q8_0"]),
        (["--isq=q8"], ["--isq=q8_0"]),
        (["--theme="], ["--theme=auto", "--theme=light", "--theme=dark"]),
        (["--stats=o"], []),
        (["--lora", "a=x", "--lora", "b=y", "--adapter", "a:0.7,b"], ["a:0.7,b"]),
        (["--lora", "style=mo"], [FILES]),
        (["--token-source", "e"], ["env:"]),
        (["--prompt", ""], []),
        (["--no-such", ""], [*SELECTORS]),
    ],
)
def test_candidates(run: InProcess, words: Sequence[str], expected: list[str]) -> None:
    found = completed(run, *words)
    assert found[: len(expected)] == expected
    assert found == expected or expected == [*SELECTORS]


def test_names_of_this_machine(run: InProcess) -> None:
    assert completed(run, "--resume", "") == []
    chats = run.home / "chats.json"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    chats.write_text(json.dumps([{"messages": turns}, {"messages": turns}]), encoding="utf-8")
    with contextlib.closing(ChatStore.open()) as store:
        first = import_chats(store, chats)[0]
        store.rename(first.id, "a trip\x1b[31m")
    for words in (["--resume", ""], ["chats", "show", ""]):
        assert sorted(completed(run, *words)) == ["2", "a trip"]
    (run.home / ".cache" / "huggingface" / "hub" / "models--owner--tiny" / "snapshots").mkdir(parents=True)
    assert completed(run, "models", "delete", "ow") == ["owner/tiny"]
    assert completed(run, "inspect", "ow") == [FILES, "owner/tiny"]


def test_a_broken_config_file_does_not_matter(run: InProcess) -> None:
    run.configure("no = toml = at all")
    assert completed(run, "doct") == ["doctor"]


def test_refusals(run: InProcess) -> None:
    for words in (["completions"], ["completions", "tcsh"], ["--threads", "2", "completions", "bash"]):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert "\nhint: " in err


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with files, a saved chat, a model in the hub's cache, and the program to call in it."""
    for name in ("my model.gguf", "other.gguf"):
        (tmp_path / name).touch()
    (tmp_path / ".cache" / "huggingface" / "hub" / "models--owner--tiny" / "snapshots").mkdir(parents=True)
    program = tmp_path / "mistralrs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mistralrs_cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "chats.json").write_text('[{"messages": [{"role": "user", "content": "hi"}]}]', encoding="utf-8")
    subprocess.run([program, "chats", "import", "chats.json"], cwd=tmp_path, env=on_path(tmp_path), check=True)
    return tmp_path


def on_path(place: Path) -> dict[str, str]:
    variables = environment(place)
    return variables | {"PATH": f"{place}:{variables['PATH']}"}


def of_shell(command: Sequence[str], place: Path) -> list[str]:
    """The lines that a shell prints in ``place``; the test is skipped where the shell is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=place, env=on_path(place), capture_output=True, text=True, timeout=120)
    return done.stdout.splitlines()


def test_bash_completes(place: Path) -> None:
    asked = """
        source <(mistralrs completions bash)
        complete() { COMP_WORDS=(mistralrs "$@"); COMP_CWORD=$#; _mistralrs; printf '%s\\n' "${COMPREPLY[@]}"; }
        complete --theme da; complete doct; complete inspect 'my'; complete --theme = d; complete --isq =
        complete --lora s = x --adapter s : 0.5,n; complete gguf --lora s = ow; complete chats show ''
    """
    found = of_shell(["bash", "-c", asked], place)
    assert found[:4] == ["dark", "doctor", "my model.gguf", "dark"]
    assert found[4:-3] == [*ISQ_TYPES]
    assert found[-3:] == ["0.5,none", "owner/tiny", "1"]


def test_zsh_completes(place: Path) -> None:
    """Typed into an interactive zsh: a line, Tab, and a command before it that prints the line."""
    lines = ("inspect my", "doct", "--theme=da", "models delete ", "gguf -f=oth", "chats show ", "--adapter n")
    typed = [f"""zpty -n -w z 'mistralrs {line}'$'\\t\\x01print -r -- GOT \\n'""" for line in lines]
    program = [
        "zmodload zsh/zpty",
        "zpty z 'TERM=dumb zsh -f -i'",
        "zpty -w z 'stty columns 200; PS1=; autoload -U compinit; compinit -u -D; source <(mistralrs completions zsh)'",
        *typed,
        "zpty -w z exit",
        'while zpty -r z out; do print -r -- "$out"; done',
    ]
    shown = "\n".join(of_shell(["zsh", "-f", "-c", "\n".join(program)], place))
    assert [line.split(" ", 1)[1].rstrip() for line in re.findall(r"^GOT (.*)$", shown, re.MULTILINE)] == [
        "inspect my model.gguf",
        "doctor",
        "--theme=dark",
        "models delete owner/tiny",
        "gguf -f=other.gguf",
        "chats show 1",
        "--adapter none",
    ]


def test_fish_completes(place: Path) -> None:
    lines = ("--theme ", "doct", "inspect my", "--theme=d", "models delete ", "gguf -f oth", "chats show ", "--isq=q8")
    asked = "; ".join(["mistralrs completions fish | source", *(f"complete -C 'mistralrs {each}'" for each in lines)])
    found = [line.partition("\t")[0] for line in of_shell(["fish", "-N", "-c", asked], place)]
    assert found[:6] == ["auto", "dark", "light", "doctor", "my model.gguf", "--theme=dark"]
    assert found[6:] == ["owner/tiny", "other.gguf", "1", "--isq=q8_0"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_printed_and_parse(run: InProcess, shell: str) -> None:
    code, out, err = run("completions", shell)
    assert (code, out, err) == (0, SCRIPTS[shell], "")
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=out, text=True, check=True, timeout=60)


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from mistralrs_cli.app import main; main(['completions', 'bash', '--', 'inspect', '']);"
        "print([name for name in ('torch', 'numpy', 'huggingface_hub', 'rich', 'mistralrs_cli.arguments.invocation')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
