"""Another model in a chat that goes on; and a chat whose terminal goes away."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import LoadError
from mistralrs.progress import Progress
from mistralrs_cli.arguments.command_line import ParsedArgs, parse
from mistralrs_cli.arguments.invocation import ChatJob, Invocation, RemoteInvocation, options_of, resolve
from mistralrs_cli.chat.chat_settings import SETTINGS, ChatSettings, SettingOrigins
from mistralrs_cli.chat_commands.model_switch import ModelSwitch, resolve_with_row
from tests.cli.fake import FakeInfo, FakeModel
from tests.cli.terminal import ENTER, Terminal, environment
from tests.cli.test_chat_commands import Talk
from tests.cli.test_saved_chats import contents, say


class Loader:
    """Loads scripted models by their files' names; files in ``broken`` cannot be loaded."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.loaded: list[tuple[str, LoadOptions]] = []
        self.has_template = True

    def __call__(self, source: ModelSource, options: LoadOptions, progress: Progress) -> FakeModel:
        assert source.path is not None
        name = source.path.stem
        if name in self.broken:
            raise LoadError(f"{name} is broken", hint="take another file")
        self.loaded.append((name, options))
        model = FakeModel(source, options)
        model.info = FakeInfo(name=name)
        model.has_template = self.has_template
        return model


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: Loader) -> Iterator[Talk]:
    """A chat that began with old.gguf and two threads."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".data"))
    monkeypatch.setenv("MISTRALRS_CONFIG", "/dev/null")
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + bytes(60))
    words = parse(["-i", "--threads", "2", "--seed", "3", "gguf", "-f", "old.gguf"])
    assert isinstance(words, ParsedArgs)
    options = options_of(words)
    task = resolve(words, options)
    assert isinstance(task, Invocation)
    assert isinstance(task.job, ChatJob)

    def resolve_again(row: Sequence[str]) -> Invocation | RemoteInvocation:
        return resolve_with_row(words, row, options=options)

    talk = Talk(replace(task.job, sampling=SamplingParams(seed=7)))
    model = loader(task.source, task.load, lambda *state: None)
    talk.chat.take_model(model)
    talk.chat.switch = ModelSwitch(model, task, load=loader, resolve=resolve_again, stderr=talk.err)
    yield talk
    talk.chat.record.close()


def contents_seen(talk: Talk) -> list[str]:
    return [each["content"] for each in json.loads(talk("messages"))]


@pytest.mark.parametrize("typed", ["new.gguf", "gguf -f new.gguf", "auto 'new.gguf'"])
def test_the_chat_goes_on_with_another_model(talk: Talk, loader: Loader, typed: str) -> None:
    talk("hello")
    said = talk(f"/model {typed}")
    assert said == (
        "new · llama · Q4_1 · cpu avx2, 2 threads · context 8 192\n"
        "the chat goes on; the next turn reads all of it anew\n"
    )
    assert [name for name, _ in loader.loaded] == ["old", "new"]
    assert loader.loaded[1][1].threads == 2  # the options before the row still count
    assert contents_seen(talk) == ["hello", "you said: hello", "messages"]
    assert talk("/stats").startswith("1 tok")
    assert talk("/show model").startswith("new · ")


def test_a_model_that_is_not_there_changes_nothing(talk: Talk, loader: Loader) -> None:
    talk("hello")
    before = talk.chat.model
    assert "does not exist" in talk("/model gguf -f nowhere.gguf")
    assert talk("/model ggfu -f new.gguf").startswith("error: no such command: ggfu\nhint: did you mean gguf?")
    assert talk("/model /no/such.gguf").startswith("error: /no/such.gguf does not exist\n")
    assert "takes a row and its options" in talk("/model gguf --help")
    assert "No closing quotation" in talk("/model 'new.gguf")
    assert talk.chat.model is before
    assert len(loader.loaded) == 1


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(talk: Talk, loader: Loader) -> None:
    talk("hello")
    loader.broken.add("new")
    assert talk("/model new.gguf") == (
        "error: new is broken\nhint: take another file\nthe chat goes on with the old model\n"
    )
    assert [name for name, _ in loader.loaded] == ["old", "old"]
    assert talk.chat.model.info.name == "old"
    assert contents_seen(talk)[0] == "hello"


def test_a_chat_without_any_model_ends(talk: Talk, loader: Loader) -> None:
    loader.broken |= {"old", "new"}
    said = talk("/model new.gguf")
    assert said.startswith("error: new is broken; nor can the old model be loaded again: old is broken\n")
    assert talk.chat.leaving


def test_a_model_without_a_template_cannot_chat(talk: Talk, loader: Loader) -> None:
    loader.has_template = False
    (before,) = loader.loaded

    class OnlyOnce:
        """The second model has no template, the third has one."""

        def __call__(self, source: ModelSource, options: LoadOptions, progress: Progress) -> FakeModel:
            model = loader(source, options, progress)
            loader.has_template = True
            return model

    assert talk.chat.switch is not None
    talk.chat.switch._load = OnlyOnce()
    assert "no chat template" in talk("/model new.gguf")
    assert loader.loaded == [before, (("new"), loader.loaded[1][1]), before]


def test_the_row_s_own_option_counts_unless_it_was_set(talk: Talk) -> None:
    talk("/model gguf -f new.gguf --repeat-last-n 9")
    assert talk("/set repeat-last-n").startswith("repeat-last-n  9 ")
    talk("/set repeat-last-n 5")
    talk("/model gguf -f old.gguf --repeat-last-n 8")
    assert talk("/set repeat-last-n") == "repeat-last-n  5  (/set)\n"


def test_the_model_s_own_sampling_counts_unless_it_was_given(talk: Talk) -> None:
    chat = talk.chat
    chat.take_model(model := FakeModel(ModelSource(None, None, None, None), LoadOptions()))
    model.info = FakeInfo(sampling={"temperature": 0.6, "top_k": 20, "xtc_probability": 0.5})
    talk("/set top-k 9")
    chat.take_model(model)
    assert talk("/set temperature") == "temperature  0.6  (the model's own)\n"
    assert talk("/set top-k") == "top-k  9  (/set)\n"
    sampling = json.loads(talk("sampling"))
    assert [sampling[name] for name in ("temperature", "top_k", "xtc_probability", "seed")] == [0.6, 9, 0.5, 7]
    assert talk("/set top-k default") == "top-k  20  (the model's own)\n"
    talk("/set temperature 2")
    assert talk("/set temperature default") == "temperature  0.6  (the model's own)\n"
    talk("/model new.gguf")  # whose makers recommend nothing
    assert talk("/set temperature") == "temperature  1.0  (default)\n"
    assert talk("/set top-k") == "top-k  0  (default)\n"


def test_what_the_user_gave_stays() -> None:
    settings = ChatSettings(SamplingParams(temperature=0.3))
    origins = SettingOrigins(settings, {"temperature": "--temperature"})
    origins.use_model(settings, {"temperature": 0.6, "top_p": 0.9})
    assert (settings.sampling.temperature, settings.sampling.top_p) == (0.3, 0.9)
    assert origins.of(SETTINGS["temperature"]) == "--temperature"


def test_tab_completes_models(talk: Talk) -> None:
    assert talk.completed("/model n") == ["/model new.gguf"]
    assert "/model gguf" in talk.completed("/model g")
    assert talk.completed("/model gguf -f o") == ["/model gguf -f old.gguf"]


def test_a_chat_on_the_terminal_takes_another_model(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF" + bytes(60))
    with Terminal(["-i", "--threads", "3"], environment(tmp_path, FAKE_SAYS_CLOSED="1")) as terminal:
        terminal.wait_for_prompt()
        say(terminal, "hello")
        terminal.send(f"/model {other}", ENTER)
        terminal.wait_for_line("the chat goes on; the next turn reads all of it anew")
        assert terminal.raw.count(b"closed\r\n") == 1
        terminal.wait_for_prompt()
        terminal.send("loaded", ENTER)
        terminal.wait_for("other.gguf")
        terminal.wait_for_prompt()
        terminal.send("/exit", ENTER)
        assert terminal.exit_code() == 0
        assert terminal.raw.count(b"closed\r\n") == 2
    assert [each[1] for each in contents(tmp_path)][:3] == ["hello", "you said: hello", "loaded"]


def test_a_chat_whose_terminal_goes_away_is_saved(tmp_path: Path) -> None:
    with Terminal(["-i"], environment(tmp_path)) as terminal:
        terminal.wait_for_prompt()
        terminal.send("slow", ENTER)
        terminal.wait_for("word3")
        terminal.child.kill(signal.SIGHUP)
        assert terminal.exit_code() == 129
    question, answer = contents(tmp_path)
    assert question[1] == "slow"
    assert answer[1].startswith("word0 word1 word2 word3 ")
    assert answer[2]
