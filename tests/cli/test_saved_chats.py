"""Chats that are saved: resumed after the end and after a kill, searched, named, exported, imported and deleted."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mistralrs_cli.arguments.command_line import parse
from mistralrs_cli.chat_storage.chat_store import ChatStore
from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, PASTE_BEGIN, PASTE_END, ROOT, Terminal, environment
from tests.cli.test_chat_terminal import messages_on

FULL_DISK = """
import resource, sys
from tests.cli.fake_main import load_fake
from mistralrs_cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
sys.exit(main(load=load_fake))
"""
HOSTILE = "\x1b]0;stolen\x07\x1b[31mred\u202e\x9b2J"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def start(home: Path, *arguments: str, **extra: str) -> Terminal:
    terminal = Terminal(["-i", *arguments], environment(home, **extra))
    terminal.wait_for_prompt()
    return terminal


def say(terminal: Terminal, text: str, answer: str = "") -> None:
    terminal.send(text, ENTER)
    terminal.wait_for_line(answer or f"you said: {text}")
    terminal.wait_for_prompt()


def leave(terminal: Terminal) -> None:
    terminal.send(CTRL_D)
    assert terminal.exit_code() == 0


def database(home: Path) -> Path:
    return home / ".local" / "share" / "mistralrs" / "chats.db"


def run(home: Path, *arguments: str, stdin: str = "", **extra: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command with the fake model."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.fake_main", *arguments],
        env=environment(home, **extra),
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def contents(home: Path, wanted: str = "") -> list[tuple[str, str, bool]]:
    store = ChatStore.open(database(home))
    try:
        return [(each.role, each.content, each.is_cut) for each in store.load(store.find(wanted)).path]
    finally:
        store.close()


def test_a_chat_is_resumed_where_it_was_left(home: Path) -> None:
    with start(home, "--system", "be brief") as terminal:
        say(terminal, "one")
        assert contents(home) == [("user", "one", False), ("assistant", "you said: one", False)]  # at once
        leave(terminal)
    with start(home, "--resume") as terminal:
        screen = terminal.lines()
        assert any(line.startswith("resuming chat 1, one: 2 messages, last used 20") for line in screen)
        assert screen[-3:-1] == ["> one", "you said: one"]
        terminal.send("messages", ENTER)
        terminal.wait_for("}]")
        roles = [each["role"] for each in messages_on(terminal.wait_for_prompt())]
        assert roles == ["system", "user", "assistant", "user"]
        leave(terminal)
    assert len(contents(home, "1")) == 4


def test_a_killed_chat_has_what_was_said(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        terminal.send("slow", ENTER)
        terminal.wait_for("word25")  # which comes after 1.3 seconds: the answer is saved every second
        terminal.child.kill(signal.SIGKILL)
        assert terminal.exit_code() == -signal.SIGKILL
    saved = contents(home)
    assert [each[:2] for each in saved[:3]] == [("user", "first"), ("assistant", "you said: first"), ("user", "slow")]
    assert saved[3][1].startswith("word0 word1 word2 ")
    assert saved[3][2]
    with start(home, "--resume") as terminal:
        terminal.wait_for_line("[interrupted here]")
        say(terminal, "and on")
    assert [each[1] for each in contents(home)[-2:]] == ["and on", "you said: and on"]


def test_a_killed_chat_gives_an_unanswered_question_back(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        terminal.send("prefill please", ENTER)
        terminal.wait_for("reading 1 240/3 900 tokens")
        terminal.child.kill(signal.SIGKILL)
        terminal.exit_code()
    with Terminal(["-i", "--resume"], environment(home)) as terminal:
        terminal.wait_for("your last message has no answer yet")
        terminal.wait_for_line("> prefill please")
        terminal.send(CTRL_C)  # clears the line
        say(terminal, "second")
    assert [each[1] for each in contents(home)] == ["first", "you said: first", "second", "you said: second"]


def test_what_was_interrupted_is_marked(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("slow", ENTER)
        terminal.wait_for("word3")
        terminal.send(CTRL_C)
        terminal.wait_for_prompt()
        assert [each[2] for each in contents(home)] == [False, True]
        terminal.send("prefill", ENTER)
        terminal.wait_for("reading 1 240/3 900 tokens")
        terminal.send(CTRL_C)
        terminal.wait_for_line("> prefill", times=2)
        assert len(contents(home)) == 2  # nothing came, and the text is in the line again
        terminal.send(CTRL_C)
        terminal.send("slow again", ENTER)
        terminal.wait_below("> slow again", "word2")
        terminal.child.kill(signal.SIGTERM)
        assert terminal.exit_code() == 143
    saved = contents(home)
    assert [each[2] for each in saved] == [False, True, False, True]
    assert "## Answer (interrupted)\n\nword0 word1" in run(home, "chats", "show", "1")[1]


def test_an_answer_that_failed_is_found_but_not_gone_on_with(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        terminal.send("fail", ENTER)
        terminal.wait_for("error: the engine broke")
        terminal.wait_for_prompt()
        terminal.send("too-long", ENTER)
        terminal.wait_for("error: This model's maximum context length is 8192 tokens.")
    assert [each[1] for each in contents(home)] == ["first", "you said: first"]
    assert "half an" in run(home, "chats", "search", "half an")[1]
    assert run(home, "chats", "search", "too-long")[1] == "nothing was found\n"


def test_without_saving_nothing_is_left(home: Path) -> None:
    with start(home, "--no-save") as terminal:
        say(terminal, "a secret")
        terminal.send("/rename it", ENTER)
        terminal.wait_for("nothing of this chat is saved yet")
        leave(terminal)
    names = [each.name for each in home.rglob("*") if each.is_file()]
    assert sorted(names) in (["chats.db", "default.gguf", "history"], ["default.gguf", "history"])
    assert run(home, "chats", "list")[1] == "there is no saved chat\n"


def test_commands_about_chats(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "about Paris")
        terminal.send("/rename France", ENTER)
        terminal.wait_for_line("chat 1 is named France")
        terminal.send("/new", ENTER)
        terminal.wait_for_line("the conversation is empty; chat 1 stays saved")
        say(terminal, "about Rome")
        terminal.send("/rename France", ENTER)
        terminal.wait_for("another chat has the name France")
        terminal.send("/search paris", ENTER)
        terminal.wait_for_line("1  France  (you)")
        terminal.wait_for_prompt()
        terminal.send("/sessions", ENTER)
        terminal.wait_for("2 messages")
        assert [line[0] for line in terminal.wait_for_prompt() if "2 messages" in line] == ["2", "1"]
        terminal.send("/resume fran", ENTER)
        terminal.wait_for("resuming chat 1, France: 2 messages")
        say(terminal, "more of it")
        terminal.send("/resume", ENTER)  # the other one
        terminal.wait_for("resuming chat 2, about Rome")
        terminal.send(f"/export json {home}/out.json", ENTER)
        terminal.wait_for("written: ")
        terminal.send(f"/export json {home}/out.json", ENTER)
        terminal.wait_for("give another name")  # a long path cuts "is there already" in two
        terminal.send("/export pdf", ENTER)
        terminal.wait_for("/export pdf: no such format")
        terminal.send(f"/import {home}/out.json", ENTER)
        terminal.wait_for("resuming chat 3, about Rome")
        terminal.send("/resume nowhere", ENTER)
        terminal.wait_for("there is no chat nowhere")
    assert [each[1] for each in contents(home, "France")][2:] == ["more of it", "you said: more of it"]
    assert contents(home, "2") == contents(home, "3")


def test_nothing_saved_reaches_the_terminal(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "harmless")
        leave(terminal)
    store = ChatStore.open(database(home))
    store.rename(1, f"name {HOSTILE}")
    conversation = store.load(store.find("1"))
    conversation.path[1].content = f"text {HOSTILE}"
    store.save(conversation, "m")
    store.close()
    with start(home, "--resume") as terminal:
        terminal.send("/sessions", ENTER)
        terminal.wait_for("2 messages")
        terminal.send("/search text", ENTER)
        terminal.wait_for("(answer)")
        terminal.send("/rename", ENTER)
        terminal.wait_for("/rename needs a name")
        shown = terminal.raw
    for words in (["list"], ["show", "1"], ["search", "text"], ["export", "1"], ["delete", "1"]):
        with Terminal(["chats", *words], environment(home)) as terminal:
            if words[0] == "delete":
                terminal.wait_for("[y/N]")
                terminal.send("y", ENTER)
            assert terminal.exit_code() == 0
            shown += terminal.raw
    assert b"red" in shown
    for part in (b"stolen", b"\x1b[31m", "\u202e".encode(), "\x9b".encode()):
        assert part not in shown
    assert run(home, "chats", "list")[1] == "there is no saved chat\n"


def test_no_name_or_error_reaches_the_terminal(home: Path) -> None:
    """Names of files and prompts in lists and menus, typed ones, and the text of an error."""
    prompts = home / ".config" / "mistralrs" / "prompts"
    prompts.mkdir(parents=True)
    name = HOSTILE.replace("\u202e", "")  # which a line shows as it is typed
    for path in (prompts / f"p{name}.md", prompts / "pure.md", home / f"f{name}.txt", home / "file.txt"):
        path.write_text("text", encoding="utf-8")
    with start(home, "--lora", f"able={home}") as terminal:
        for line, shown in (
            ("/p", "pure"),
            ("/adapter", "able"),
            ("/adapter absent", "there is no adapter"),
            (f"/read {home}/", "texts"),
            (f"/read {home}/f{name}.txt", "your next message has it"),
            (f"@{home}/f{name}.txt and text", "you said"),
            (f"wrong {name}", "error: it said"),
            (f"/system {name}", "system message"),
            ("/show prompt", "tokens"),
            (f"/{name}", "no such command"),
            ("/tree", "you:"),
        ):
            terminal.send(PASTE_BEGIN + line + PASTE_END, ENTER)
            terminal.wait_for(shown)
            terminal.wait_for_prompt()
        for begun in ("/p p", "/adapter a", f"/read {home}/f", f"@{home}/f"):
            terminal.send(begun, "\t")
            time.sleep(0.3)
            terminal.send(CTRL_C)
            terminal.wait_for_prompt()
        raw = terminal.raw
    for part in (b"\x1b]0;", b"\x1b[31m", "\x9b2J".encode()):
        assert part not in raw


def test_two_terminals_at_once(home: Path) -> None:
    with start(home) as one, start(home) as two:
        for turn in range(3):
            say(one, f"one {turn}")
            say(two, f"two {turn}")
    for number, name in (("1", "one"), ("2", "two")):
        assert [each[1] for each in contents(home, number)][::2] == [f"{name} {turn}" for turn in range(3)]


def test_where_nothing_can_be_saved_it_is_said_once(home: Path) -> None:
    database(home).parent.mkdir(parents=True)
    database(home).write_bytes(b"no database at all" * 100)
    with start(home) as terminal:
        say(terminal, "one")
        say(terminal, "two")
        terminal.send("/sessions", ENTER)
        terminal.wait_for("error: ")
        text = " ".join("\n".join(terminal.wait_for_prompt()).split())
        assert text.count("this chat is not saved: ") == 1
        assert text.count("is damaged: file is not a database") == 2
        leave(terminal)
    assert database(home).read_bytes() == b"no database at all" * 100
    code, _, err = run(home, "-i", "--resume", FAKE_LOAD_ERROR="the model was loaded")
    assert (code, "is damaged" in err) == (3, True)


def test_a_full_disk_does_not_end_the_chat(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        leave(terminal)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "-i", "--resume"],
        env=environment(home),
        cwd=ROOT,
        input="hello " + "x" * 40_000 + "\nhello again\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.endswith("\nyou said: hello again\n")
    assert done.stderr.count("this chat is not saved: ") == 1
    assert contents(home)[0] == ("user", "first", False)


def test_lines_from_a_pipe_are_saved_where_they_go_on_with_a_chat(home: Path) -> None:
    assert run(home, "-i", stdin="one\n")[:2] == (0, "you said: one\n")
    assert not database(home).exists()
    with start(home) as terminal:
        say(terminal, "first")
        leave(terminal)
    code, out, err = run(home, "-i", "--resume", "1", stdin="messages\n")
    assert (code, err) == (0, "")
    assert [each["content"] for each in json.loads(out)] == ["first", "you said: first", "messages"]
    assert len(contents(home)) == 4


def test_nothing_to_resume_is_said_before_the_model_is_loaded(home: Path) -> None:
    for words, reason in (((), "there is no saved chat"), (("nine",), "there is no chat nine")):
        code, _, err = run(home, "-i", "--resume", *words, FAKE_LOAD_ERROR="the model was loaded")
        assert code == 2
        assert err == f"error: {reason}\nhint: mistralrs chats list lists them\n"


@pytest.mark.parametrize(
    ("words", "name", "row"),
    [
        (["-i", "--resume"], "", None),
        (["--resume", "-i"], "", None),
        (["-i", "--resume", "work"], "work", None),
        (["-i", "--resume", "gguf", "-f", "x.gguf"], "", "gguf"),
        (["-i", "--resume", "work", "gguf", "-f", "x.gguf"], "work", "gguf"),
        (["-i", "--resume=gguf"], "gguf", None),
    ],
)
def test_the_name_after_resume_may_be_left_out(words: list[str], name: str, row: str | None) -> None:
    parsed = parse(words)
    assert parsed is not None
    assert parsed.flags["resume"] == name
    assert (parsed.selection and parsed.selection.selector.name) == row


def test_chats_as_json(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "what is Ω?")
        leave(terminal)
    (listed,) = json.loads(run(home, "chats", "list", "--json")[1])
    assert (listed["id"], listed["title"], listed["num_messages"]) == (1, "what is Ω?", 2)
    shown = json.loads(run(home, "chats", "show", "what", "--json")[1])
    assert shown["messages"][0] == {"role": "user", "content": "what is Ω?"}
    (first, second) = json.loads(run(home, "chats", "search", "IS Ω?", "--json")[1])
    assert (first["role"], second["role"], first["chat"]["id"]) == ("assistant", "user", 1)


def test_export_and_import_by_command(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "<b>bold</b> & all")
        leave(terminal)
    page = run(home, "chats", "export", "1", "--format", "html")[1]
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; all" in page
    out = home / "chat.json"
    assert run(home, "chats", "export", "1", "--format", "json", "--out", str(out))[0] == 0
    code, _, err = run(home, "chats", "export", "1", "--out", str(out))
    assert (code, "is there already" in err) == (2, True)
    assert run(home, "chats", "export", "1", "--out", str(out), "--format", "json", "--force")[0] == 0
    assert out.stat().st_mode & 0o077 == 0
    assert run(home, "chats", "import", str(out))[2] == "1 chat saved: 2\n"
    assert contents(home, "1") == contents(home, "2")


def test_deleting_asks_or_is_told(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        leave(terminal)
    code, _, err = run(home, "chats", "delete", "1")
    assert (code, "nobody can be asked whether to delete chat 1" in err) == (2, True)
    with Terminal(["chats", "delete", "first"], environment(home)) as terminal:
        terminal.wait_for("delete chat 1, first? [y/N]")
        terminal.send("n", ENTER)
        assert terminal.exit_code() == 0
    assert run(home, "chats", "delete", "1", "--yes")[2] == "chat 1 is deleted: first\n"
    assert run(home, "chats", "show", "1")[0] == 2


def loaded_with(home: Path, *words: str) -> tuple[str | None, int, str]:
    """The folder and the limit of the KV with which a resumed chat loaded its model, and what was said."""
    code, out, err = run(home, "-i", *words, stdin="loaded\n")
    assert code == 0
    options = json.loads(out)["options"]
    return options["kv_dir"], options["kv_dir_bytes"], err


def test_kv_is_kept_where_the_chat_is_saved(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        leave(terminal)
    folder = str(home / ".cache" / "mistralrs" / "kv")
    kept, limit, _ = loaded_with(home, "--resume")
    assert (kept, 0 < limit <= 2 << 30) == (folder, True)
    assert loaded_with(home, "--kv-dir-size", "1M", "--resume")[:2] == (folder, 1 << 20)
    assert loaded_with(home, "--kv-dir", str(home / "mine"), "--resume")[:2] == (str(home / "mine"), 8 << 30)
    for words in ((), ("--resume", "--no-save"), ("--resume", "--no-kv-cache"), ("--resume", "--prefix-cache-n", "0")):
        assert loaded_with(home, *words)[0] is None
    assert stat.S_IMODE((home / ".cache" / "mistralrs" / "kv").stat().st_mode) == 0o700


def test_a_cache_that_cannot_be_written_is_said(home: Path) -> None:
    with start(home) as terminal:
        say(terminal, "first")
        leave(terminal)
    shutil.rmtree(home / ".cache")
    (home / ".cache").write_text("a file where a folder should be")
    kept, _, err = loaded_with(home, "--resume")
    assert kept is None
    assert f"KV is not kept in {home}/.cache/mistralrs/kv: " in err
