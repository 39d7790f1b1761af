"""Chats that fill the context: refused, dropped or summarized, visibly, and taken back; and answers that repeat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.errors import ContextLengthError
from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.arguments.invocation import ChatJob, Invocation, resolve
from mistralrs_cli.chat.chat_history import Conversation, Message
from mistralrs_cli.chat.chat_settings import ContextPolicy
from mistralrs_cli.chat_commands import context_room
from mistralrs_cli.chat_commands.repetition import is_said_before, repeats_itself
from mistralrs_cli.chat_storage.chat_formats import as_html, as_json, as_markdown, read_chats
from mistralrs_cli.chat_storage.chat_store import ChatStore
from tests.cli.test_chat_commands import Talk


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    talk = Talk(ChatJob(SamplingParams(seed=7), "be brief", False, False))
    yield talk
    talk.chat.record.close()


def seen(talk: Talk) -> list[str]:
    """The contents of the messages that the model sees."""
    return [str(each["content"]) for each in json.loads(talk("messages"))]


def saved(talk: Talk) -> Conversation:
    """The chat as another process would resume it."""
    store = ChatStore.open()
    try:
        return store.load(store.find(""))
    finally:
        store.close()


def test_a_full_context_is_refused_with_three_ways_out(talk: Talk) -> None:
    for text in ("one", "two", "three"):
        talk(text)
    before = list(talk.chat.conversation.path)
    said = talk("crowded")
    assert said.startswith("error: This model's maximum context length is 8192 tokens.")
    assert "--context slide" in said  # nobody types here
    for way in ("/compact", "/set context slide", "/set context compact"):
        assert way in context_room.FULL
    assert talk.chat.conversation.path == before


def test_the_oldest_turns_are_dropped_and_brought_back(talk: Talk) -> None:
    for text in ("one", "two", "three", "four"):
        talk(text)
    talk("/set context slide")
    said = talk("crowded")
    assert "the model does not see the 4 messages before these any more; the chat keeps them" in said
    assert said.startswith("you said: crowded\n")
    assert seen(talk)[:3] == ["be brief", "three", "you said: three"]
    assert len(talk.chat.conversation.path) == 12
    assert saved(talk).num_unseen == 4
    assert "-- in place of all above the model sees nothing" in talk("/tree")
    assert talk("/compact show").startswith("the model does not see the first 4 messages; the chat keeps them")
    assert talk("/compact undo") == "the model sees the whole conversation again\n"
    assert len(seen(talk)) == 14
    assert saved(talk).num_unseen == 0


def test_one_message_that_is_too_long_is_refused_under_every_policy(talk: Talk) -> None:
    talk("one")
    for policy in ("slide", "compact"):
        talk(f"/set context {policy}")
        assert "error: This model's maximum context length" in talk("too-long")
    assert talk.chat.conversation.path[-1].content == "you said: one"


def test_a_summary_stands_in_for_old_turns(talk: Talk) -> None:
    for text in ("one", "two", "three"):
        talk(text)
    said = talk("/compact")
    assert said == (
        "summarizing 2 messages ...\n"
        "this summary stands in for the first 2 messages; the chat keeps them, /compact undo brings them back\n"
        "  Summary of 1: one\n"
    )
    asked = seen(talk)
    assert asked[:2] == ["be brief", "Summary of our conversation until now:\nSummary of 1: one\n\ntwo"]
    assert [each.content for each in talk.chat.conversation.path[:2]] == ["one", "you said: one"]
    resumed = saved(talk)
    assert (resumed.num_unseen, resumed.summary) == (2, "Summary of 1: one")
    talk("/compact")
    assert talk.chat.conversation.num_unseen == 4
    assert "Summary of our conversation until now:\nSummary of 1: one" in talk.chat.conversation.summary
    assert "  Summary of 1: one" in talk("/compact undo")  # the first summary counts again
    assert talk.chat.conversation.num_unseen == 2
    talk("/compact undo")
    assert talk("/compact show") == "the model sees the whole conversation\n"
    assert "nothing is compacted or dropped" in talk("/compact undo")
    assert "no such action" in talk("/compact now")


def test_a_summary_that_is_cut_or_repeats_itself_says_so(talk: Talk) -> None:
    for text in ("endless", "two", "three"):
        talk(text)
    said = talk("/compact").splitlines()
    assert said[1:3] == [
        f"the summary is cut at {context_room.SUMMARY_TOKENS} tokens",
        "the summary repeats itself word for word; /compact undo brings the turns back",
    ]


def test_a_full_context_is_summarized(talk: Talk) -> None:
    for text in ("one", "two", "three", "four"):
        talk(text)
    talk("/set context compact")
    said = talk("crowded")
    assert "this summary stands in for the first 6 messages" in said
    assert talk.chat.conversation.path[-1].content == "you said: crowded"
    assert seen(talk)[1].endswith("\n\nfour")


def test_turns_that_do_not_fit_together_are_summarized_half_by_half(talk: Talk) -> None:
    for text in "abcdefghij":
        talk(text)
    said = talk("/compact")
    assert said.startswith("summarizing 16 messages ...\nsummarizing 8 messages ...\nsummarizing 8 messages ...\n")
    assert talk.chat.conversation.num_unseen == 16


def test_a_branch_before_the_summary_is_seen_whole(talk: Talk) -> None:
    for text in ("one", "two", "three"):
        talk(text)
    talk("/compact")
    talk("/tree 2")
    assert talk.chat.conversation.num_unseen == 2  # message 2 carries the summary
    talk("/retry 1")
    assert talk.chat.conversation.num_unseen == 0
    talk("/tree 6")
    assert talk.chat.conversation.summary == "Summary of 1: one"
    talk("/fork")
    assert talk.chat.conversation.summary == "Summary of 1: one"
    talk("/new")
    assert "the conversation is empty" in talk("/compact")
    talk("only")
    assert "the first 2 messages" in talk("/compact")  # a single turn, when it is asked for
    assert "the model does not see the last answer any more" in talk("/continue")
    assert "there is no turn to compact" in talk("/compact")


def test_laws_of_dropping_and_undoing() -> None:
    random = Random(3)
    for _ in range(200):
        path = [Message("user" if i % 2 == 0 else "assistant", str(i)) for i in range(random.randrange(1, 30))]
        conversation = Conversation("s", path)
        states = [conversation.for_model()]
        for _ in range(random.randrange(1, 5)):
            before = conversation.num_unseen
            if random.random() < 0.5:
                moved = context_room.slide(conversation)
            else:
                moved = context_room.compact(conversation, lambda messages, earlier: f"{earlier}{len(messages)};") or 0
            assert conversation.num_unseen == before + moved
            if moved:
                states.append(conversation.for_model())
                assert path[conversation.num_unseen].role == "user"  # a question comes first, and one is left
        while len(states) > 1:
            assert conversation.for_model() == states.pop()
            assert context_room.undo(conversation)
        assert not context_room.undo(conversation)
        assert len(conversation.whole()) == len(path) + 1


def test_a_turn_that_fits_into_no_summary_is_an_error() -> None:
    conversation = Conversation(None, [Message("user", "x"), Message("assistant", "y"), Message("user", "z")])

    def summarize(messages: object, earlier: str) -> str:
        raise ContextLengthError(9, 8)

    with pytest.raises(ContextLengthError):
        context_room.compact(conversation, summarize)
    assert context_room.compact(conversation, lambda messages, earlier: None) is None
    assert conversation.num_unseen == 0


@pytest.mark.parametrize(
    ("words", "policy"),
    [((), "full"), (("-t",), "slide"), (("--context", "compact"), "compact"), (("-t", "--context", "full"), "full")],
)
def test_the_option(words: tuple[str, ...], policy: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    parsed = parse(["-i", *words, "gguf", "-f", str(tmp_path / "m.gguf")])
    assert parsed is not None
    task = resolve(parsed)
    assert isinstance(task, Invocation)
    assert isinstance(task.job, ChatJob)
    talk = Talk(task.job)
    origin = "--context" if "--context" in words else "default"
    assert talk("/set context") == f"context  {policy}  ({origin})\n"


def test_a_repetition_is_noticed(talk: Talk) -> None:
    assert talk("loop").endswith(
        "the answer repeats itself word for word; /retry dry answers anew, against repetition\n"
    )
    long = "a question with so many words that the same answer to it is no accident, or is it, after all is said?"
    assert "repeats itself" not in talk(long)
    assert "repeats itself" in talk(long)
    assert talk("dry") == "dry 0.0\n"
    assert talk("/retry dry") == "dry 0.8\n"
    assert talk("/retry") == "dry 0.0\n"
    assert talk("/retry 7 dry").startswith("dry 0.8")


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("no " * 30, True),
        ("intro text first. " + "I am sorry, I can not do that. " * 4, True),
        ("very, very, very good", False),
        ("ha " * 20, False),
        (" ".join(f"line {number} of a list" for number in range(40)), False),
        ("a b c d e f g h " * 2 + "and then something else", False),
        ("x y " * 40 + "the end of it", False),
        ("", False),
    ],
)
def test_repetitions(text: str, repeats: bool) -> None:
    assert repeats_itself(text) is repeats


def test_short_answers_may_be_the_same() -> None:
    assert not is_said_before("Yes.", ["Yes."])
    assert is_said_before("word " * 20, ["no", "word\n" * 20])


def test_thinking_is_saved_and_exported(talk: Talk, tmp_path: Path) -> None:
    talk("think")
    conversation = saved(talk)
    assert conversation.path[1].thinking == "I \x1b[31mthink hard.\n"
    assert [each["content"] for each in conversation.for_model()] == ["be brief", "think", "answer None"]
    assert talk("/show thinking") == "I think hard.\n"
    assert "\n> I " in as_markdown(conversation, "t")
    assert "<h2>Thinking</h2>" in as_html(conversation, "t")
    exported = as_json(conversation, "t")
    assert json.loads(exported)["messages"][2]["reasoning_content"] == "I \x1b[31mthink hard.\n"
    (tmp_path / "out.json").write_text(exported)
    assert read_chats(tmp_path / "out.json")[0].path[1].thinking == conversation.path[1].thinking
    talk("plain")
    assert "the last answer has no thinking" in talk("/show thinking")


def test_exports_have_what_the_model_does_not_see(talk: Talk) -> None:
    for text in ("one", "two", "three"):
        talk(text)
    talk("/compact")
    assert [each["content"] for each in json.loads(as_json(saved(talk), "t"))["messages"]][1:3] == [
        "one",
        "you said: one",
    ]


@pytest.mark.native
@pytest.mark.model
@pytest.mark.parametrize("policy", ["slide", "compact"])
def test_a_chat_with_a_real_model_goes_on_for_ever(
    policy: ContextPolicy, default_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    options = LoadOptions(max_seqs=1, threads=2, max_model_len=400)
    sampling = SamplingParams(temperature=0, max_tokens=16)
    with LocalModel.load(ModelSource(None, default_model, None, None), options) as model:
        talk = Talk(ChatJob(sampling, None, False, False, policy=policy))
        talk.chat.model = model
        for number in range(12):
            said = talk(f"Here is a text with the number {number}. " + "It has some more words. " * 5)
            assert "error" not in said
            assert len(model.tokens_of(talk.chat.conversation.for_model())) < 400
        conversation = talk.chat.conversation
        assert len(conversation.path) == 24
        assert conversation.num_unseen > 0
        assert bool(conversation.summary) == (policy == "compact")
        assert "brings them back" in talk.err.getvalue()
        talk.chat.record.close()
