"""The commands of the chat, run in this process with a scripted model: the table, its help, and what each does."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import MistralrsError
from mistralrs_cli.arguments.invocation import ChatJob
from mistralrs_cli.chat import slash_commands
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands.command_help import help_lines, help_of
from mistralrs_cli.chat_commands.input_completion import InputCompleter
from mistralrs_cli.chat_storage.chat_record import open_record
from mistralrs_cli.terminal.output import Streams
from tests.cli.fake import FakeAdapters, FakeModel
from tests.cli.terminal import ENTER, ROOT, Terminal, environment


class Talk:
    """A chat without a terminal: lines in, text out."""

    def __init__(self, job: ChatJob) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.model = FakeModel(ModelSource(None, None, None, None), LoadOptions())
        self.model._adapters = FakeAdapters(("style", "law"), {})
        record = open_record("model", wanted=job.save, say=pytest.fail)
        self.chat = Chat(self.model, job, Streams(io.StringIO(), self.out, self.err), record=record)

    def __call__(self, line: str) -> str:
        """Returns what a typed line shows."""
        before = len(self.out.getvalue()), len(self.err.getvalue())
        try:
            if slash_commands.is_command(line):
                slash_commands.run(self.chat, line)
            else:
                self.chat.take_turn(slash_commands.message(line), mark_cut=True)
        except MistralrsError as error:
            self.chat.notes.error(error)
        return self.out.getvalue()[before[0] :] + self.err.getvalue()[before[1] :]

    def completed(self, text: str) -> list[str]:
        """Returns the lines that Tab offers for a typed beginning."""
        completer = InputCompleter(self.chat, slash_commands.suggest)
        found = completer.get_completions(Document(text), CompleteEvent(completion_requested=True))
        return [text[: len(text) + each.start_position] + each.text for each in found]


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    """A saved chat in an empty folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".data"))
    monkeypatch.chdir(tmp_path)
    talk = Talk(ChatJob(SamplingParams(seed=7), None, False, False))
    yield talk
    talk.chat.record.close()


@pytest.mark.parametrize("width", [120, 80, 40])
def test_help_fits_the_screen(width: int) -> None:
    lines = help_lines(slash_commands.COMMANDS, width=width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for command in slash_commands.COMMANDS:
        assert command.usage in text
        assert command.help in text
        assert max(map(len, help_of(command, width=width))) <= width


def test_the_table_is_whole() -> None:
    names = [name for each in slash_commands.COMMANDS for name in (each.name, *each.aliases)]
    assert len(set(names)) == len(names)
    runs = [section for section, _ in itertools.groupby(each.section for each in slash_commands.COMMANDS)]
    assert len(set(runs)) == len(runs)
    assert all(each.help[0].isupper() and not each.help.endswith(".") for each in slash_commands.COMMANDS)
    assert [each.name for each in slash_commands.COMMANDS if len(each.usage) > 30 or len(each.help) > 50] == []


def test_help_explains_one_command(talk: Talk) -> None:
    said = talk("/help clear")
    assert said == "/new\n  Begin another chat with the same system message. The old one stays saved.\n  also: /clear\n"
    assert talk("/help /exit").endswith("also: /bye, /quit, \\exit\n")
    assert "did you mean /exit?" in talk("/help exti")


@pytest.mark.parametrize(
    ("typed", "nearest"), [("/hlep", "/help"), ("/sesions", "/sessions"), ("/Undo", "/undo"), ("/exitt x", "/exit")]
)
def test_an_unknown_command_is_not_sent(talk: Talk, typed: str, nearest: str) -> None:
    said = talk(typed)
    assert said.startswith(f"error: no such command: {typed.split()[0]}\nhint: did you mean {nearest}? ")
    assert talk.chat.conversation.path == []


def test_two_slashes_send_one(talk: Talk) -> None:
    assert talk("//etc is a folder") == "you said: /etc is a folder\n"
    assert talk("//") == "you said: /\n"


@pytest.mark.parametrize("word", ["/exit", "/bye", "/quit", "\\exit"])
def test_words_that_leave(talk: Talk, word: str) -> None:
    talk(word)
    assert talk.chat.leaving


def test_tab_completes_commands_and_their_arguments(talk: Talk) -> None:
    assert talk.completed("/re") == ["/retry", "/resume", "/rename"]
    assert talk.completed("/stats o") == ["/stats on", "/stats off"]
    assert talk.completed("/help und") == ["/help undo"]
    assert talk.completed("/adapter style:0.5 l") == ["/adapter style:0.5 law"]
    assert talk.completed("/adapter l") == ["/adapter law", "/adapter list"]
    assert talk.completed("/export m") == ["/export md"]
    for text in ("//re", "re", "/undo x", "/nothing x", "text\n/re"):
        assert talk.completed(text) == []


def test_tab_completes_paths(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("docs/a.md", "a note.txt", "names.txt", ".hidden", "bad\x1b]0;x\x07", "bad\u202e"):
        (tmp_path / name).touch()
    assert talk.completed("/import ") == ["/import a note.txt", "/import docs/", "/import names.txt"]
    assert talk.completed("/export json d") == ["/export json docs/"]
    assert talk.completed("/import .h") == ["/import .hidden"]
    assert talk.completed("compare @docs/") == ["compare @docs/a.md"]
    assert talk.completed("compare @a") == ['compare @"a note.txt"']
    assert talk.completed('compare @"a n') == ['compare @"a note.txt"']
    assert talk.completed(f"look: @{tmp_path}/na") == [f"look: @{tmp_path}/names.txt"]
    assert talk.completed("me@na") == talk.completed("@nowhere/x") == talk.completed("@~nobody-here/") == []


def test_tab_completes_saved_chats(talk: Talk) -> None:
    talk("one")
    talk("/rename holidays")
    talk("/new")
    talk("two")
    assert talk.completed("/resume ") == ["/resume 2", "/resume holidays"]
    assert talk.completed("/load ho") == ["/load holidays"]


def test_tab_on_the_terminal(tmp_path: Path) -> None:
    with Terminal(["-i"], environment(tmp_path), columns=40, lines=20) as terminal:
        terminal.wait_for_prompt()
        terminal.send("/he\t")
        terminal.wait_for_line("> /help")
        terminal.send(ENTER)
        terminal.wait_for("beginning sends a message with a slash.")
        assert max(map(len, terminal.wait_for_prompt())) <= 40
        terminal.send("/st\t of\t", ENTER)
        terminal.wait_for_line("statistics after each answer: off")
        terminal.send("/re\t")
        terminal.wait_for("/rename")
        assert re.search(r"/retry +/resume|/resume +/rename", "\n".join(terminal.lines()))


def test_the_guide_names_every_key_and_command() -> None:
    guide = (ROOT / "docs" / "chat-guide.md").read_text(encoding="utf-8")
    assert [each.name for each in slash_commands.COMMANDS if f"| `{each.name}" not in guide] == []
