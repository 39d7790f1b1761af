"""The commands of the chat, run in this process with a scripted model: the table, its help, and what each does."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import MistralrsError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import ChatJob, Invocation, resolve
from mistralrs_cli.chat import slash_commands
from mistralrs_cli.chat.chat_history import Message
from mistralrs_cli.chat.chat_settings import SETTINGS, ChatSettings
from mistralrs_cli.chat.render import Notes
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_commands.command_help import help_lines, help_of
from mistralrs_cli.chat_input.input_completion import InputCompleter
from mistralrs_cli.chat_storage.chat_record import open_record
from mistralrs_cli.server_client.remote_model import RemoteInfo, RemoteModel, ServerChoice
from mistralrs_cli.server_client.server_address import ServerAddress
from mistralrs_cli.server_client.server_connection import Server
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
    assert talk.completed("/re") == ["/retry", "/read", "/resume", "/rename"]
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


def sampling_of(talk: Talk) -> dict[str, object]:
    """The sampling parameters that the model was asked with."""
    found: dict[str, object] = json.loads(talk("sampling"))
    return found


TRIED: list[tuple[str, str, object, str]] = [
    ("temperature 0.8", "temperature", 0.8, "0.8"),
    ("top-k -1", "top_k", 0, "0"),
    ("top_p 0.5", "top_p", 0.5, "0.5"),
    ("min-p 0.05", "min_p", 0.05, "0.05"),
    ("typical-p 0.9", "typical_p", 0.9, "0.9"),
    ("repeat-penalty 1.1", "repetition_penalty", 1.1, "1.1"),
    ("repeat-last-n -1", "repeat_last_n", 2**31 - 1, "-1"),
    ("frequency-penalty 0", "frequency_penalty", 0.0, "0.0"),
    ("presence-penalty -1", "presence_penalty", -1.0, "-1.0"),
    ("dry-multiplier 0.8", "dry_multiplier", 0.8, "0.8"),
    ("dry-base 2", "dry_base", 2.0, "2.0"),
    ("xtc-probability 0.5", "xtc_probability", 0.5, "0.5"),
    ("xtc-threshold 0.2", "xtc_threshold", 0.2, "0.2"),
    ("seed 42", "seed", 42, "42"),
    ("max-tokens -1", "max_tokens", None, "-1"),
    ("max-tokens 100", "max_tokens", 100, "100"),
    ("stop a b\\n", "stop", ["a b\n"], "'a b\\n'"),
    ('stop ""', "stop", [], '""'),
]


@pytest.mark.parametrize(("typed", "field", "value", "shown"), TRIED)
def test_a_setting_counts_from_the_next_turn_on(talk: Talk, typed: str, field: str, value: object, shown: str) -> None:
    name = typed.split()[0].replace("_", "-")
    assert talk(f"/set {typed}") == f"{name}  {shown}  (/set)\n"
    assert sampling_of(talk)[field] == value
    before = SETTINGS[name].value(ChatSettings(SamplingParams(seed=7)))
    talk(f"/set {name} default")
    assert talk.chat.settings.sampling == SamplingParams(seed=7)
    assert talk(f"/set {name}").startswith(f"{name}  {SETTINGS[name].show(before)}")


def test_every_setting_is_tried_above() -> None:
    tried = {typed.split()[0].replace("_", "-") for typed, _, _, _ in TRIED}
    assert tried == {name for name, each in SETTINGS.items() if each.is_sampling}


@pytest.mark.parametrize(
    ("typed", "error"),
    [
        ("temperature 101", "/set temperature 101.0 is out of range"),
        ("temperature nan", "/set temperature nan is out of range"),
        ("temperature warm", "/set temperature=warm: not a number"),
        ("top-k 1.5", "/set top-k=1.5: not a whole number"),
        ("max-tokens 0", "/set max-tokens 0 is out of range"),
        ("dry-multiplier -1", "/set dry-multiplier -1.0 is out of range"),
        ("dry-multiplier x", "/set dry-multiplier x: not a number"),
        ("repeat-last-n 0.5", "/set repeat-last-n: not a whole number"),
        ("think loudly", "/set think loudly: no such value\nhint: one of on, off, hide, auto"),
        ("temprature 1", "there is no setting temprature\nhint: did you mean temperature?"),
        ("colour red", "there is no setting colour\nhint: known are temperature, "),
    ],
)
def test_a_wrong_setting_is_refused(talk: Talk, typed: str, error: str) -> None:
    assert talk(f"/set {typed}").startswith(f"error: {error}")
    assert talk.chat.settings == ChatSettings(SamplingParams(seed=7))


def test_settings_say_where_they_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.toml"
    config.write_text("top-p = 0.5\n")
    monkeypatch.setenv("MISTRALRS_CONFIG", str(config))
    monkeypatch.setenv("MISTRALRS_MIN_P", "0.1")
    (tmp_path / "model.gguf").touch()
    parsed = parse(["-i", "--no-save", "--temperature", "0.7", "gguf", "-f", str(tmp_path / "model.gguf")])
    assert parsed is not None
    task = resolve(parsed)
    assert isinstance(task, Invocation)
    assert isinstance(task.job, ChatJob)
    talk = Talk(task.job)
    said = talk("/set")
    assert said == talk("/show params")
    assert [line.split()[0] for line in said.splitlines()] == list(SETTINGS)
    for name, value, origin in (
        ("temperature", "0.7", "--temperature"),
        ("top-p", "0.5", f"{config}: top-p"),
        ("min-p", "0.1", "MISTRALRS_MIN_P"),
        ("top-k", "32", "default"),
    ):
        assert re.search(rf"^{name} +{value} +\({re.escape(origin)}\)$", said, re.MULTILINE)
    talk("/set temperature 1")
    assert talk("/set temperature") == "temperature  1.0  (/set)\n"
    talk("/set temperature default")
    assert talk("/set temperature") == "temperature  0.7  (--temperature)\n"


def test_tab_completes_settings(talk: Talk) -> None:
    assert talk.completed("/set te") == ["/set temperature"]
    assert talk.completed("/set top_") == ["/set top-k", "/set top-p"]
    assert talk.completed("/set think o") == ["/set think on", "/set think off"]
    assert talk.completed("/set top-k d") == ["/set top-k default"]
    assert talk.completed("/set nothing d") == []
    assert talk.completed("/show te") == ["/show template"]


def test_a_server_is_told_or_the_setting_refused(talk: Talk) -> None:
    choice = ServerChoice(
        Server(ServerAddress.parse("http://localhost:1", written="x"), None), None, frozenset(), 1, False
    )
    info = RemoteInfo("m", "http://localhost:1", 0)
    foreign, ours = RemoteModel(choice, info, is_ours=False), RemoteModel(choice, info, is_ours=True)
    sampling = SamplingParams(temperature=0.5, dry_multiplier=0.8)
    talk.chat.model = foreign
    assert "error" not in talk("/set temperature 0.5")
    assert foreign._sampling_fields(sampling) == {"temperature": 0.5}
    assert talk("/set dry-multiplier 0.8").startswith("error: only a mistralrs server is known to obey dry_multiplier")
    assert "dry_multiplier" not in foreign._sampling_fields(sampling)
    assert "error" not in talk("/set seed 5") + talk("/set max-tokens 5")
    talk.chat.model = ours
    talk("/set dry-multiplier 0.8")
    assert ours._sampling_fields(sampling)["dry_multiplier"] == 0.8
    assert "the chat template is the server's" in talk("/show template")
    talk.chat.model = foreign
    talk.chat.conversation.path = [Message("user", "x")]
    for typed in ("/show prompt", "/tokens", "/tokens a text"):
        assert talk(typed).startswith("error: only a mistralrs server is known to ")
    talk.chat.conversation.path = []
    assert talk("/tokens") == "0 tokens\n"
    assert "hint: /model NAME asks an adapter of the server" in talk("/adapter")


def test_the_meter_leaves_room_in_a_narrow_line(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, shown in ((80, "Fake-1B"), (24, "Fake-…")):
        monkeypatch.setattr(Notes, "width", columns)
        assert talk.chat.meter() == shown


def test_a_server_keeps_its_own_sampling(talk: Talk) -> None:
    server = Server(ServerAddress.parse("http://localhost:1", written="x"), None)
    choice = ServerChoice(server, None, frozenset({"top_k"}), 1, False)
    talk.chat.model = RemoteModel(choice, RemoteInfo("m", "http://localhost:1", 0), is_ours=False)
    assert talk("/set top-p").split() == ["top-p", "-", "(the", "server's", "own)"]
    assert "server's own" not in talk("/set top-k") + talk("/set seed")
    talk("/set top-p 0.5")
    assert talk("/set top-p").split() == ["top-p", "0.5", "(/set)"]
    info = RemoteInfo("m", "http://localhost:1", 0, sampling={"temperature": 0.7})
    talk.chat.take_model(RemoteModel(choice, info, is_ours=True))
    assert talk("/set temperature").split() == ["temperature", "0.7", "(the", "model's", "own)"]


def test_show(talk: Talk) -> None:
    assert (
        talk("/show")
        == talk("/show model")
        == ("Fake-1B · llama · Q4_1 · cpu avx2, 2 threads · context 8 192\nadapters: style, law; 0 active\n")
    )
    assert talk("/show template") == "{{ messages }}\n"
    assert "the conversation is empty" in talk("/show prompt")
    talk("/system be brief")
    talk("one")
    assert talk("/show prompt") == "<system>be brief<user>one<assistant>you said: one\n49 tokens\n"
    assert "/show all: no such topic" in talk("/show all")


def test_schema(talk: Talk, tmp_path: Path) -> None:
    assert talk("/schema") == "answers are any text\n"
    (tmp_path / "city.json").write_text('{"type": "object"}')
    assert talk("/schema city.json") == "answers are JSON of the schema in city.json; /schema off lifts it\n"
    assert json.loads(talk("grammar")) == {"kind": "json_schema", "text": '{"type": "object"}'}
    assert talk("/schema").endswith('{"type": "object"}\n')
    assert talk("/set").endswith("answers obey a grammar: json_schema; /schema off lifts it\n")
    assert "/schema nowhere.json cannot be read" in talk("/schema nowhere.json")
    (tmp_path / "bad.json").write_text('{"type": "strange"}')
    assert talk("/schema bad.json").startswith("error: /schema bad.json: ")
    talk("/schema off")
    assert json.loads(talk("grammar")) is None
    assert talk.completed("/schema c") == ["/schema city.json"]


def test_think(talk: Talk) -> None:
    for typed, asked in (("off", False), ("on", True), ("hide", None), ("show", None)):
        assert "error" not in talk(f"/think {typed}")
        assert talk("think") == f"answer {asked}\n"
    assert talk("/think") == "think  auto  (/set)\n"
    assert talk("/think maybe").startswith("error: /set think maybe: no such value")


def test_tab_on_the_terminal(tmp_path: Path) -> None:
    with Terminal(["-i"], environment(tmp_path), columns=40, lines=20) as terminal:
        terminal.wait_for_prompt()
        terminal.send("/he\t")
        terminal.wait_for_line("> /help")
        terminal.send(ENTER)
        terminal.wait_for("beginning sends a message with a slash.")
        assert max(map(len, terminal.wait_for_prompt())) <= 40
        terminal.send("/st\t of\t", ENTER)
        terminal.wait_for_line("stats  off  (/set)")
        terminal.send("/re\t")
        terminal.wait_for("/rename")
        assert re.search(r"/retry +/resume|/resume +/rename", "\n".join(terminal.lines()))


def test_the_guide_names_every_key_and_command() -> None:
    guide = (ROOT / "docs" / "chat-guide.md").read_text(encoding="utf-8")
    assert [each.name for each in slash_commands.COMMANDS if f"| `{each.name}" not in guide] == []
