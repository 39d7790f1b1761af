"""Every command on every kind of output: its exit code, where its output goes, and no control of others in it."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mistralrs.api.selectors.model_selector import SELECTORS
from mistralrs_cli.arguments.command_line import command_tree
from tests.adapters.peft_adapters import write_adapter
from tests.architectures import VARIANTS, write_folder
from tests.cli.forked_commands import CLOSED, UNREAD, ForkedCommands
from tests.cli.terminal import environment

FULL = "/dev/full"
STYLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\d+A|\x1b\[[JK]|\x1b\]8;;[^\x1b]*\x1b\\")
"""The sequences that may reach a terminal with colours."""
COLOURS = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:[349][0-7]|10[0-7]|[34]8;)[0-9;]*m")
"""Those that choose a colour."""


@dataclass(frozen=True)
class Row:
    """A command line; MODEL, CHAT and FOLDER stand for files, NEW for one that is not there."""

    name: str
    words: str
    code: int = 0
    has_output: bool = True
    stdin: str = ""
    is_answer: bool = False
    """It would have been output, so that an stdout that was never open ends it before the error."""


ROWS = (
    Row("--version", "--version"),
    Row("--help", "--help"),
    Row("--prompt", "--prompt escape"),
    Row("--prompt", "--prompt x --top-p 2", code=2, has_output=False),
    Row("--prompt", "--prompt too-long", code=4, has_output=False, is_answer=True),
    Row("-i", "-i", stdin="page\n"),
    Row("bench", "bench -p 16 -n 4 -r 1"),
    Row("inspect", "inspect MODEL"),
    Row("models", "models"),
    Row("models", "models delete owner/none --yes", code=2, has_output=False),
    Row("chats list", "chats list"),
    Row("chats show", "chats show 1"),
    Row("chats search", "chats search word"),
    Row("chats export", "chats export 1"),
    Row("chats import", "chats import CHAT", has_output=False),
    Row("chats delete", "chats delete 99 --yes", code=2, has_output=False),
    Row("quantize", "quantize FOLDER/base NEW --type q8_0", has_output=False),
    Row("quantize", "quantize FOLDER/absent FOLDER/out.gguf --type q8_0", code=3, has_output=False),
    Row("ordering create", "ordering create FOLDER/base -a FOLDER/adapters --names style"),
    Row("ordering create", "ordering create FOLDER/absent", code=2, has_output=False),
    Row("ordering rename", "ordering rename FOLDER/absent --names a,b", code=3, has_output=False, is_answer=True),
    Row("adapter inspect", "adapter inspect FOLDER/adapters/style"),
    Row("adapter inspect", "adapter inspect FOLDER/absent", code=3, has_output=False),
    Row("adapter convert", "adapter convert FOLDER/absent --to peft --base x --out y", code=3, has_output=False),
    Row("adapter merge", "adapter merge MODEL FOLDER/absent --out y.gguf", code=3, has_output=False),
    Row("adapter scalings", "adapter scalings", code=2, has_output=False),
    Row("config", "config"),
    Row("doctor", "doctor"),
    Row("verify", "verify MODEL"),
    Row("tune", "tune MODEL"),
    Row("completions", "completions bash"),
    Row("help", "help chats"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A user with a saved chat whose texts and names have escape sequences, a model's file named with one, and
    an adapter of a model in a folder."""
    folder = tmp_path_factory.mktemp("home")
    os.symlink(tiny_llama, folder / "m\x1b]0;title\x07.gguf")
    texts = ["a word \x1b]0;title\x07 \x9b31m", "an answer \x1b[31m with a word"]
    chat = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    base = write_folder(folder / "base", VARIANTS["llama"], dtype=torch.float32)
    write_adapter(folder / "adapters" / "style", base, settings={"target_modules": ["q_proj"], "r": 4})
    (folder / "chat.json").write_text(json.dumps(chat), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def commands(home: Path) -> Iterator[ForkedCommands]:
    with ForkedCommands(environment(home)) as running:
        assert (
            running.run_fake(["chats", "import", str(home / "chat.json")], environment=environment(home)).returncode
            == 0
        )
        yield running


def words_of(row: Row, home: Path) -> list[str]:
    new = home / "new.gguf"
    new.unlink(missing_ok=True)
    model, chat = home / "m\x1b]0;title\x07.gguf", home / "chat.json"
    places = {"MODEL": str(model), "CHAT": str(chat), "FOLDER": str(home), "NEW": str(new)}
    return [re.sub("|".join(places), lambda found: places[found[0]], word) for word in row.words.split()]


def on_terminal(commands: ForkedCommands, row: Row, home: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    """The exit code, and all that the terminal gets."""
    master, slave = os.openpty()
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(master, 65536):
                pieces.append(piece)
        except OSError:  # nobody has it open any more
            return

    reader = threading.Thread(target=read)
    reader.start()
    name = os.ttyname(slave)
    done = commands.run_fake(
        words_of(row, home), environment=environment(home, **variables), stdin=row.stdin, out=name, err=name
    )
    os.close(slave)
    reader.join()
    os.close(master)
    return done.returncode, b"".join(pieces).decode()


def test_every_command_has_a_row() -> None:
    group = command_tree()
    names = {"--version", "--help", "--prompt", "-i"}
    for name in group.list_commands(None):
        if name not in SELECTORS:
            command = group.get_command(None, name)
            names |= {f"{name} {each}" for each in command.commands} if hasattr(command, "commands") else {name}
    assert {row.name for row in ROWS} == names


@pytest.mark.native
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words)
def test_the_contract_of_a_command(commands: ForkedCommands, home: Path, row: Row) -> None:
    plain = commands.run_fake(words_of(row, home), environment=environment(home), stdin=row.stdin)
    assert plain.returncode == row.code, plain.stderr
    assert bool(plain.stdout) == row.has_output
    assert "Traceback" not in plain.stderr
    assert ("\nerror: " in f"\n{plain.stderr}") == (row.code != 0)
    if row.name not in ("--prompt", "chats show", "chats export"):  # which give a pipe the bytes as they are
        assert "\x1b" not in plain.stdout
    assert "\x1b" not in plain.stderr
    for out, code in ((CLOSED, 141), (UNREAD, 141), (FULL, 1)) if row.has_output else ((CLOSED, row.code),):
        done = commands.run_fake(words_of(row, home), environment=environment(home), stdin=row.stdin, out=out)
        code = 141 if row.is_answer else code
        assert done.returncode == code, (out, done.stderr)
        assert "Traceback" not in done.stderr
        assert ("error: " in done.stderr) == (code not in (0, 141))


@pytest.mark.native
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words)
def test_nothing_of_others_reaches_a_terminal(commands: ForkedCommands, home: Path, row: Row) -> None:
    for variables in ({}, {"TERM": "dumb"}, {"NO_COLOR": "1"}) if row.has_output else ({},):
        code, shown = on_terminal(commands, row, home, variables)
        assert code == row.code, shown
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]", shown)
        assert "\x1b" not in STYLE.sub("", shown)
        assert "TERM" not in variables or "\x1b" not in shown
        assert "NO_COLOR" not in variables or not COLOURS.search(shown)
