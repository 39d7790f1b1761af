"""The commands of the guide to chatting: those of the shell name what they say, and each of the chat runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs.engine.config import SamplingParams
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import ChatJob, Invocation, resolve
from mistralrs_cli.chat import slash_commands
from mistralrs_cli.commands.chats_job import ChatsJob
from tests.cli.terminal import ROOT
from tests.cli.test_chat_input import Input

GUIDE = (ROOT / "docs" / "chat-guide.md").read_text(encoding="utf-8")
SHELL = [
    shlex.split(line[line.index("mistralrs ") :], comments=True)
    for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if "mistralrs " in line
]
TYPED = sorted({typed for typed in re.findall(r"`(/[a-z][^`]*)`", GUIDE) if "|" not in typed})


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_a_command_of_the_shell(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRALRS_CONFIG", "/dev/null")
    monkeypatch.setenv("MISTRALRS_DEFAULT_MODEL", str(tmp_path / "model.gguf"))
    for name in ("model.gguf", "conversations.json"):
        (tmp_path / name).touch()
    parsed = parse(words[1:])
    assert parsed is not None
    task = resolve(parsed)
    assert isinstance(task, ChatsJob) or (isinstance(task, Invocation) and isinstance(task.job, ChatJob))


def test_the_guide_has_commands() -> None:
    assert len(SHELL) > 15
    assert len(TYPED) > 40


@pytest.mark.parametrize("typed", TYPED)
def test_a_command_that_the_guide_names_is_there(typed: str) -> None:
    name, _, argument = typed.partition(" ")
    command = slash_commands.find(name)
    assert command.argument or not argument


RUN = {
    "/retry": ("/retry", "you said: hello"),
    "/continue": ("/continue", "and more"),
    "/edit": ("/edit", "Enter sends it in place of the old message"),
    "/undo": ("/undo", "taken back: hello"),
    "/compact": ("/compact", "this summary stands in for the first 2 messages"),
    "/read": ("/read notes.txt", "attached: notes.txt"),
    "/p": ("/p translate language=French Good morning!", "you said: Translate into French: Good morning!"),
    "/multi": ("/multi", "Enter begins a new line"),
    "/tokens": ("/tokens", "of 8 192 tokens of the context"),
    "/save": ("/save answer.md", "written: answer.md"),
    "/copy": ("/copy", "there is no terminal that has a clipboard"),
    "/probs": ("/probs", "probabilities are kept from now on"),
    "/alt": ("/alt 2", "these are the messages 3, 4"),
    "/tree": ("/tree", "* 1 you: hello"),
    "/fork": ("/fork", "from now on this is chat 2"),
    "/new": ("/new", "chat 1 stays saved"),
    "/sessions": ("/sessions", "2 messages"),
    "/resume": ("/resume 1", "resuming chat 1"),
    "/search": ("/search hello", "1  hello  (you)"),
    "/rename": ("/rename greetings", "chat 1 is named greetings"),
    "/export": ("/export json out.json", "written: out.json"),
    "/import": ("/import chats.json", "1 chat saved"),
    "/model": ("/model", "Fake-1B"),
    "/set": ("/set temperature 0.8", "temperature  0.8  (/set)"),
    "/show": ("/show prompt", "<user>hello"),
    "/system": ("/system be brief", "system message: be brief"),
    "/schema": ("/schema schema.json", "answers are JSON of the schema"),
    "/think": ("/think hide", "think  hide"),
    "/adapter": ("/adapter style", "acting from now on: style"),
    "/scalings": ("/scalings", "this model is none"),
    "/stats": ("/stats", "1 tok"),
    "/help": ("/help", "/exit"),
    "/exit": ("/exit", ""),
}
"""A line for each command, and a part of what it shows in a chat of one turn."""


def test_each_command_is_run_below() -> None:
    assert set(RUN) == {each.name for each in slash_commands.COMMANDS}


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Input]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / ".config" / "mistralrs" / "prompts"
    prompts.mkdir(parents=True)
    (prompts / "translate.md").write_text("Translate into {{language}}: {{input}}")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / "chats.json").write_text('[{"role": "user", "content": "hi"}]')
    talk = Input(ChatJob(SamplingParams(seed=7), None, False, False))
    talk("hello")
    yield talk
    talk.chat.record.close()


@pytest.mark.parametrize("name", RUN)
def test_a_command_of_the_chat(name: str, talk: Input) -> None:
    typed, shown = RUN[name]
    assert shown in talk(typed)
    assert talk.chat.leaving == (name == "/exit")
