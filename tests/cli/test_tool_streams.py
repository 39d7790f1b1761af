"""The stream contract of commands that need no model: pipes, closed and full outputs, plain terminals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mistralrs_cli.arguments.command_line import command_tree
from tests.cli.program import Program
from tests.cli.terminal import ROOT, Terminal, environment
from tests.tiny import write_tiny

COMMANDS: dict[str, tuple[str, ...]] = {
    "config": ("config",),
    "doctor": ("doctor",),
    "verify": ("verify", "{model}"),
    "tune": ("tune", "{model}"),
    "inspect": ("inspect", "{model}"),
    "models": ("models",),
    "chats list": ("chats", "list"),
    "completions": ("completions", "bash"),
}
"""A command line of each command that writes its result to stdout; ``{model}`` stands for a file."""
WITH_JSON = ("config", "doctor", "verify", "tune", "inspect", "models", "chats list")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf").path


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def words(name: str, model: Path) -> list[str]:
    return [word.format(model=model) for word in COMMANDS[name]]


def settings(home: Path) -> dict[str, str]:
    return environment(home, HF_HOME=str(home / "hf"), HF_HUB_OFFLINE="1")


def test_every_command_is_here() -> None:
    """Those that are not have tests of their own: they write files, run a model, or print help."""
    elsewhere = {"bench", "quantize", "ordering", "adapter", "help"}
    rows_end = command_tree().list_commands(None).index("bench")
    commands = set(command_tree().list_commands(None)[rows_end:])
    assert {name.split()[0] for name in COMMANDS} | elsewhere == commands


@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_output_and_a_full_disk(name: str, model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mistralrs_cli", *words(name, model)]
    for redirection, code, said in ((">&-", 141, ""), (">/dev/full", 1, "error: standard output cannot be written: ")):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
            env=settings(tmp_path),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr[: len(said)]) == (code, said), redirection
        assert bool(done.stderr) == bool(said)


@pytest.mark.parametrize("name", WITH_JSON)
def test_json_is_one_line_and_stderr_is_empty(name: str, model: Path, program: Program) -> None:
    variables = {"HF_HOME": str(program.home / "hf"), "HF_HUB_OFFLINE": "1"}
    code, out, err = program(*words(name, model), "--json", module="mistralrs_cli", variables=variables)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    json.loads(out)


@pytest.mark.parametrize("extra", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "TERM=dumb"])
def test_a_plain_terminal_gets_no_escapes(extra: dict[str, str], tmp_path: Path) -> None:
    with Terminal(["doctor"], {**settings(tmp_path), **extra}) as terminal:
        terminal.wait_for("everything works")
        assert terminal.exit_code() == 0
        assert b"\x1b" not in terminal.raw


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (["verify", "absent.gguf"], 3),
        (["tune", "absent.gguf"], 3),
        (["doctor", "--api", "http://127.0.0.1:9"], 3),
        (["doctor", "--api", ""], 2),
        (["verify"], 2),
        (["tune"], 2),
        (["config", "--no"], 2),
        (["completions", "csh"], 2),
    ],
)
def test_errors_have_their_code_one_line_and_a_hint(line: list[str], code: int, program: Program) -> None:
    found, out, err = program(*line, module="mistralrs_cli")
    assert (found, out) == (code, "")
    first, second = err.splitlines()[:2]
    assert first.startswith("error: ")
    assert second.startswith("hint: ")
