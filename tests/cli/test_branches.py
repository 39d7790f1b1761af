"""The branches of a chat: retried, edited, undone, continued, forked and chosen."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Finished, Usage
from mistralrs_cli.arguments.invocation import ChatJob
from mistralrs_cli.chat import branches
from mistralrs_cli.chat.session import Chat
from mistralrs_cli.chat_storage.chat_record import open_record
from mistralrs_cli.chat_storage.chat_store import ChatStore
from mistralrs_cli.terminal.output import Streams
from tests.cli.terminal import CTRL_C, ENTER, Terminal
from tests.cli.test_saved_chats import contents, database, leave, say, start

SAMPLING = SamplingParams(temperature=0.9, top_p=0.9, seed=5, max_tokens=12)
CTRL_A, CTRL_G, CTRL_K = "\x01", "\x07", "\x0b"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def texts(home: Path, wanted: str = "") -> list[str]:
    return [content for _, content, _ in contents(home, wanted)]


def num_messages(home: Path) -> int:
    store = ChatStore.open(database(home))
    try:
        return store.find("").num_messages
    finally:
        store.close()


def command(terminal: Terminal, text: str, shown: str) -> list[str]:
    terminal.send(text, ENTER)
    terminal.wait_for(shown)
    return terminal.wait_for_prompt()


def test_retry_draws_anew_and_keeps_both(home: Path) -> None:
    with start(home, "--seed", "7") as terminal:
        say(terminal, "seed", "seed 7")
        command(terminal, "/retry", "seed 8")
        command(terminal, "/retry 1", "seed 9")
        assert texts(home) == ["seed", "seed 9"]
        say(terminal, "next")
        tree = command(terminal, "/tree", "6 answer: you said: next")
        assert tree[-7:-1] == [
            "* 1 you: seed",
            "    2 answer: seed 7",
            "    3 answer: seed 8",
            "*   4 answer: seed 9",
            "*   5 you: next",
            "*   6 answer: you said: next",
        ]
        command(terminal, "/tree 2", "going on after: seed 7")
        assert texts(home) == ["seed", "seed 7"]
        command(terminal, "/tree 4", "going on after: you said: next")
        assert texts(home) == ["seed", "seed 9", "next", "you said: next"]
        for words, reason in (("/tree 7", "no message 7"), ("/retry 0", "no message 0"), ("/edit x", "no message x")):
            command(terminal, words, reason)


def test_a_retry_that_is_stopped_early_loses_nothing(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        terminal.send("slow", ENTER)
        terminal.wait_for("word2")
        terminal.send(CTRL_C)
        terminal.wait_for_prompt()
        before = contents(home)
        terminal.send("/edit 1", ENTER)
        terminal.wait_for_line("> first", times=2)
        terminal.send(CTRL_A, CTRL_K, "prefill", ENTER)
        terminal.wait_for("reading 1 240/3 900 tokens")
        terminal.send(CTRL_C)
        terminal.wait_for_line("> prefill", times=2)
        assert contents(home) == before
        assert num_messages(home) == 4


def test_editing_a_question_and_an_answer(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "one")
        say(terminal, "two")
        terminal.send("/edit 1", ENTER)
        terminal.wait_for_line("> one", times=2)
        say(terminal, " and a half", "you said: one and a half")
        assert texts(home) == ["one and a half", "you said: one and a half"]
        command(terminal, "/tree 4", "going on after: you said: two")
        terminal.send("/edit 2", ENTER)
        terminal.wait_for_line("> you said: one")
        command(terminal, ", as I heard", "the answer is changed")
        assert texts(home) == ["one", "you said: one, as I heard"]
        terminal.send("/edit", ENTER)
        terminal.wait_for_line("> one", times=2)
        terminal.send(CTRL_C)  # leaves the old one: the next line is a turn again
        say(terminal, "three")
        assert texts(home) == ["one", "you said: one, as I heard", "three", "you said: three"]
        assert num_messages(home) == 9


def test_an_editor_opens_with_the_message(home: Path) -> None:
    script = home / "editor"
    script.write_text('#!/bin/sh\nsed -i "s/old/new/" "$1"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with start(home, EDITOR=str(script), VISUAL="") as terminal:
        say(terminal, "the old text")
        terminal.send("/edit", ENTER)
        terminal.wait_for_line("> the old text", times=2)
        terminal.send(CTRL_G)
        terminal.wait_for_line("> the new text")
        terminal.send(ENTER)
        terminal.wait_for_line("you said: the new text")


def test_undo_continue_and_fork(home: Path) -> None:
    with start(home) as terminal:
        command(terminal, "/undo", "the conversation is empty")
        say(terminal, "one")
        say(terminal, "two")
        command(terminal, "/undo", "taken back: two")
        assert texts(home) == ["one", "you said: one"]
        command(terminal, "/continue", "and more")
        assert texts(home) == ["one", "you said: one and more"]
        command(terminal, "/fork", "from now on this is chat 2; chat 1 stays as it is")
        say(terminal, "otherwise")
        assert texts(home, "1") == ["one", "you said: one and more"]
        assert texts(home, "2") == ["one", "you said: one and more", "otherwise", "you said: otherwise"]


def test_other_answers(home: Path) -> None:
    with start(home, "--seed", "3") as terminal:
        say(terminal, "seed", "seed 3")
        screen = command(terminal, "/alt 2", "these are the messages 3, 4: /tree NUMBER goes on with one")
        assert screen[-6:-2] == ["another answer, 1 of 2:", "seed 4", "another answer, 2 of 2:", "seed 5"]
        assert texts(home) == ["seed", "seed 3"]
        command(terminal, "/tree 4", "going on after: seed 5")
        assert texts(home) == ["seed", "seed 5"]
        command(terminal, "/alt 17", "not a number from 1 to 16")
        terminal.send("slow", ENTER)
        terminal.wait_for("word2")
        terminal.send(CTRL_C)
        terminal.wait_for_prompt()
        terminal.send("/alt 3", ENTER)
        terminal.wait_below("another answer, 1 of 3:", "word2")
        terminal.send(CTRL_C)
        command(terminal, "", "these are the messages")
        assert texts(home)[-2] == "slow"


def test_branches_need_no_saving(home: Path) -> None:
    with start(home, "--no-save", "--seed", "1") as terminal:
        say(terminal, "seed", "seed 1")
        command(terminal, "/retry", "seed 2")
        command(terminal, "/tree 2", "going on after: seed 1")
        command(terminal, "/fork", "from now on this is a copy")
        leave(terminal)
    assert not database(home).exists()


@pytest.fixture(scope="module")
def model(default_model: Path) -> Iterator[LocalModel]:
    loaded = LocalModel.load(ModelSource(None, default_model, None, None), LoadOptions(max_seqs=4, threads=2))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def forgetful(default_model: Path) -> Iterator[LocalModel]:
    """The same model, which computes every prompt as a whole."""
    options = LoadOptions(max_seqs=1, threads=2, prefix_cache_n=0)
    loaded = LocalModel.load(ModelSource(None, default_model, None, None), options)
    yield loaded
    loaded.close()


@pytest.fixture
def chat(model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    """A saved chat with the default model whose answers are drawn and of 12 tokens."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    streams = Streams(io.StringIO(), io.StringIO(), io.StringIO())
    record = open_record("model", wanted=True, say=pytest.fail)
    yield Chat(model, ChatJob(SAMPLING, None, False, False), streams, record=record)
    record.close()


def usage_of(chat: Chat) -> Usage:
    assert chat.last is not None
    return chat.last


@pytest.mark.native
@pytest.mark.model
def test_an_edited_message_is_computed_from_there_on(chat: Chat) -> None:
    usages = []
    for turn in range(5):
        chat.take_turn(f"Here is my question, which has the number {turn}: how are you?", mark_cut=False)
        usages.append(usage_of(chat))
    branches.edit(chat, "5")  # the third question
    assert chat.edit is not None
    chat.edit("Here is my question, which is another: who are you?")
    usage = usage_of(chat)
    assert usages[1].prompt_tokens - 16 <= usage.cached_tokens < usages[2].prompt_tokens
    assert usage.prompt_tokens < usages[3].prompt_tokens
    branches.tree(chat, "10")
    assert len(chat.conversation.path) == 10
    chat.take_turn("And at last?", mark_cut=False)
    assert usage_of(chat).cached_tokens >= usages[4].prompt_tokens - 16  # the old branch's KV is there still


@pytest.mark.native
@pytest.mark.model
@pytest.mark.slow
def test_random_branches_answer_as_a_chat_typed_anew(chat: Chat, forgetful: LocalModel) -> None:
    random = Random(11)

    def anew() -> str:
        """The answer to the same messages with the same seed, of a model that reuses nothing."""
        sampling = replace(SAMPLING, seed=usage_of(chat).seed)
        events = list(forgetful.chat(chat.conversation.for_model()[:-1], sampling))
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens == 0
        return "".join(event.text for event in events if isinstance(event, Delta))

    chat.take_turn("Hello, who are you?", mark_cut=False)
    for step in range(25):
        count = len(chat.record.store.messages(chat.conversation.id or 0))
        action = random.choice(("say", "say", "retry", "edit", "undo", "fork"))
        if action == "say":
            chat.take_turn(f"Tell me about number {step}.", mark_cut=False)
        elif action == "retry":
            branches.retry(chat, str(random.randrange(1, count + 1)))
        elif action == "edit":
            branches.edit(chat, "")
            assert chat.edit is not None
            chat.edit(f"Say it otherwise, {step}.")
        elif action == "undo" and len(chat.conversation.path) > 2:
            branches.undo(chat, "")
            continue
        else:
            branches.fork(chat, "")
            continue
        assert chat.conversation.path[-1].content == anew(), f"step {step}: {action}"
