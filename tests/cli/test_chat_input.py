"""The input of the chat: attached files and pages, commands of the shell, prompts of the user, piped texts, pastes."""

from __future__ import annotations

import base64
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pexpect
import pytest

from mistralrs.engine.config import SamplingParams
from mistralrs.errors import MistralrsError
from mistralrs_cli.arguments.invocation import ChatJob
from mistralrs_cli.chat_input import web_page
from mistralrs_cli.chat_input.shell_output import run_command
from mistralrs_cli.chat_input.typed_input import act
from tests.cli.terminal import (
    ALT_ENTER,
    CTRL_D,
    ENTER,
    PASTE_BEGIN,
    PASTE_END,
    PATIENCE,
    ROOT,
    Terminal,
    end,
    environment,
    send_all,
)
from tests.cli.test_chat_commands import Talk


class Input(Talk):
    """A chat whose lines may attach."""

    def __call__(self, line: str, *, pasted: Sequence[str] = ()) -> str:
        before = len(self.out.getvalue()), len(self.err.getvalue())
        try:
            act(self.chat, line, pasted=pasted)
        except MistralrsError as error:
            self.chat.notes.error(error)
        return self.err.getvalue()[before[1] :] + self.out.getvalue()[before[0] :]

    @property
    def asked(self) -> str:
        """The last question as the model saw it."""
        return self.chat.conversation.path[-2].content


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Input]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / ".data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    (tmp_path / "a note.md").write_text("```sh\nls\n```")
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "b.py").write_text("b = 2\n")
    (tmp_path / "src" / "deep" / "a.py").write_text("a = 1\n")
    (tmp_path / "src" / ".secret").write_text("hidden")
    (tmp_path / "src" / "picture.bin").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe" * 9)
    talk = Input(ChatJob(SamplingParams(seed=7), None, False, False))
    yield talk
    talk.chat.record.close()


def test_a_file_goes_with_a_message(talk: Input) -> None:
    assert talk("explain @notes.txt, please").startswith("attached: notes.txt, 8 tokens\n")
    assert talk.asked == "explain @notes.txt, please\n\nnotes.txt:\n```\none\ntwo\n```"
    talk('see @"a note.md"')
    assert talk.asked == 'see @"a note.md"\n\na note.md:\n````\n```sh\nls\n```\n````'


def test_a_folder_goes_with_a_message(talk: Input) -> None:
    shown = talk("review @src/")
    assert shown.startswith(
        "left out, for they are no text: src/picture.bin\n"
        "attached: src/b.py, 6 tokens\n"
        "attached: src/deep/a.py, 6 tokens\n"
        "attached: 2 texts, 12 tokens in all\n"
    )
    assert "a = 1" in talk.asked
    assert "hidden" not in talk.asked


def test_a_large_folder_is_listed_in_part(talk: Input, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(25):
        (tmp_path / "many" / f"{number:02d}.txt").write_text("text")
    lines = talk("see @many/").splitlines()
    assert lines[19:22] == [
        "attached: many/19.txt, 4 tokens",
        "attached: and 5 more",
        "attached: 25 texts, 100 tokens in all",
    ]
    for number in range(25, 501):
        (tmp_path / "many" / f"{number}.txt").touch()
    assert talk("see @many/").startswith("error: many has more than 500 files\n")


@pytest.mark.parametrize("text", ["ask @john about it", "me@notes.txt", "\\@notes.txt", "an @ alone", "@types/node"])
def test_other_words_are_text(talk: Input, text: str) -> None:
    assert "attached" not in talk(text)
    assert talk.asked == text.removeprefix("\\")


@pytest.mark.parametrize("word", ["@nothing.txt", "@./nothing", '@"no thing"', "@nowhere/", "@~/nothing"])
def test_a_path_that_is_not_there_is_refused_and_given_back(talk: Input, word: str) -> None:
    text = f"explain {word}"
    assert "there is no such file\nhint: write \\@ to send it as text\n" in talk(text)
    assert talk.chat.draft == text
    assert talk.chat.conversation.path == []


def test_files_that_do_not_fit_are_refused(talk: Input, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 9000)
    assert talk("see @long.txt").startswith("error: long.txt: 9 000 tokens, and the context has 8 192\n")
    assert talk("see @src/picture.bin").startswith("error: src/picture.bin is ")
    assert talk.chat.conversation.path == []


@pytest.mark.parametrize(
    "text",
    ["see @notes.txt", "\\\\@notes.txt", "\\@nothing.txt", "//etc", "!!x", "a @john\nand @src/\n\n@notes.txt", "!!"],
)
def test_a_message_that_is_edited_is_sent_as_it_is(talk: Input, text: str) -> None:
    talk(text)
    before = talk.asked
    talk("/edit")
    assert "attached" not in talk(talk.chat.draft)
    assert talk.asked == before
    assert talk.chat.conversation.path[-2].id != 1  # it is another message


def test_pasted_text_attaches_and_runs_nothing(talk: Input) -> None:
    pasted = "see @notes.txt\n@src/"
    assert "attached" not in talk(f"what is this: {pasted}", pasted=[pasted])
    assert "attached: notes.txt" in talk(f"@notes.txt like {pasted}", pasted=[pasted])
    assert "attached: notes.txt" in talk("@notes.txt", pasted=["notes.txt"])  # the path alone was pasted
    assert talk("!touch made", pasted=["!touch made"]) == "you said: !touch made\n"
    assert not Path("made").exists()


def test_pages_need_leave(talk: Input) -> None:
    assert talk("see @https://example.com/x").startswith(
        "error: @https://example.com/x is not fetched: the chat does not use the network\nhint: --allow-net lets it"
    )
    assert talk.chat.draft == "see @https://example.com/x"


class Pages(BaseHTTPRequestHandler):
    """A page of HTML, a text, a picture, and nothing else."""

    def do_GET(self) -> None:
        bodies = {
            "/page": ("text/html; charset=latin-1", "<title>T</title><script>no()</script><p>caf\xe9 &amp; bar<p>two"),
            "/text": ("text/plain", "plain <b>"),
            "/picture": ("image/png", "x"),
        }
        if self.path not in bodies:
            self.send_error(404)
            return
        kind, text = bodies[self.path]
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode("latin-1"))

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def test_pages_as_text(talk: Input) -> None:
    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}"
        talk.chat.fetch = web_page.fetch
        assert f"attached: {site}/page, 16 tokens" in talk(f"sum up @{site}/page.")
        assert talk.asked.endswith(f"{site}/page:\n```\nT\ncafé & bar\ntwo\n```")
        talk(f"@{site}/text")
        assert talk.asked.endswith("```\nplain <b>\n```")
        assert f"error: {site}/picture is image/png, which is no text" in talk(f"@{site}/picture")
        assert f"error: {site}/other cannot be fetched: HTTP 404" in talk(f"@{site}/other")
        server.shutdown()
    assert "cannot be fetched" in talk(f"@{site}/page")


def test_files_wait_for_the_next_message(talk: Input) -> None:
    assert talk("/read") == "nothing waits for your next message\n"
    assert talk("/read notes.txt") == "attached: notes.txt, 8 tokens\nyour next message has it; /read none drops it\n"
    assert "error: the engine broke" in talk("fail")  # keeps it
    assert talk("/read") == "waiting for your next message: notes.txt\n"
    talk("what is it?")
    assert talk.asked == "what is it?\n\nnotes.txt:\n```\none\ntwo\n```"
    talk("and now?")
    assert talk.asked == "and now?"
    talk("/read src")
    assert talk("/read none") == "nothing waits for your next message any more\n"
    assert talk("/read nowhere.txt").startswith("error: nowhere.txt ")
    assert talk.completed("/read n") == ["/read none", "/read notes.txt"]


def test_a_command_s_output_is_attached_after_a_question(talk: Input) -> None:
    questions = []

    def confirm(question: str) -> bool:
        questions.append(question)
        return True

    assert talk("!echo no") == "no\n"  # the default answer is no
    assert talk.chat.attachments == []
    talk.chat.confirm = confirm
    shown = talk("!printf 'out\\033[31m'; seq 30; echo err >&2; exit 3")
    assert shown.startswith("out1\n2\n")
    assert "... and 11 more lines\nexit code 3\n" in shown
    assert questions == ["attach its 93 tokens to your next message?"]
    talk("why?")
    assert talk.asked.startswith("why?\n\n$ printf 'out")
    assert talk.asked.endswith("30\nerr\n```")
    assert talk("!true") == "no output\n"
    assert talk("!!important") == "you said: !important\n"
    assert talk("!") == "you said: !\n"


def test_an_endless_command_is_ended() -> None:
    output = run_command("yes")
    assert (len(output.text), output.end) == (4 << 20, "ended after 4 MB of output")
    assert run_command("kill -9 $$").end == "ended by signal 9"


def test_prompts_of_the_user(talk: Input, tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "mistralrs" / "prompts"
    assert talk("/p") == f"there is no prompt in {folder}\n"
    folder.mkdir(parents=True)
    (folder / "translate.md").write_text("Translate into {{language}}, {{ tone }}:\n\n{{input}}\n")
    (folder / "joke.md").write_text("Tell a joke with {braces}.\n")
    assert talk("/p") == "/p joke\n/p translate language=... tone=... TEXT\n"
    talk('/p translate language=French tone="very polite" I don\'t know = why')
    assert talk.asked == "Translate into French, very polite:\n\nI don't know = why"
    talk("/p joke about cats")
    assert talk.asked == "Tell a joke with {braces}.\n\nabout cats"
    talk("/p joke like @notes.txt")
    assert talk.asked.endswith("like @notes.txt\n\nnotes.txt:\n```\none\ntwo\n```")
    assert talk("/p translate tone=x hello") == (
        "error: /p translate: no value for language\nhint: /p translate language=... tone=... TEXT\n"
    )
    assert talk("/p jok").startswith("error: there is no prompt jok\nhint: known are joke, translate\n")
    assert talk("/p ../../x").startswith("error: there is no prompt ../../x")
    assert talk.completed("/p t") == ["/p translate"]
    assert talk.completed("/p translate language=x t") == ["/p translate language=x tone="]


def test_tokens_are_counted(talk: Input) -> None:
    assert talk("/tokens") == "0 of 8 192 tokens of the context (0 %)\n"
    talk("hi")
    assert talk("/tokens") == "31 of 8 192 tokens of the context (0 %)\n"
    assert talk("/tokens a b") == "3 tokens: a| |b\n"
    assert talk(f"/tokens {'x' * 500}").endswith("|x and 100 more\n")


def test_the_answer_is_written_to_a_file(talk: Input, tmp_path: Path) -> None:
    assert "there is no answer yet" in talk("/save out.md")
    talk("hello")
    assert talk("/save out.md") == "written: out.md, 15 B\n"
    assert (tmp_path / "out.md").read_text() == "you said: hello\n"
    assert "out.md is there already" in talk("/save out.md")
    assert "/save needs a file" in talk("/save")


def test_copying_needs_a_terminal(talk: Input, monkeypatch: pytest.MonkeyPatch) -> None:
    talk("code:\n\n```py\none\n```\nand\n~~~\ntwo\n~~~")
    assert "there is no terminal that has a clipboard" in talk("/copy")
    monkeypatch.setattr(talk.out, "isatty", lambda: True)
    for typed, copied in (("/copy", None), ("/copy code", "one"), ("/copy code 2", "two")):
        expected = talk.chat.conversation.path[-1].content if copied is None else copied
        assert f"\x1b]52;c;{base64.b64encode(expected.encode()).decode()}\x07" in talk(typed)
    assert "there is no code block 3" in talk("/copy code 3")
    assert "no such part" in talk("/copy all")
    talk("plain")
    assert "has no code block" in talk("/copy code")


def test_probabilities(talk: Input, monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk("/probs").startswith("probabilities are kept from now on")
    assert talk("/probs") == "there is no answer yet whose probabilities were kept\n"
    monkeypatch.setenv("NO_COLOR", "1")
    talk("probable")
    shown = talk("/probs")
    assert shown.startswith("1 suremaybe↵(50)\n3 never(1)\n/probs N shows")
    assert talk("/probs 2") == "* maybe↵   50.0 %\n  other    40.0 %\n"
    assert "there is no token 4" in talk("/probs 4")
    assert talk("/probs off").endswith("not kept\n")
    talk("probable")
    assert talk("/probs").startswith("probabilities are kept from now on")


def test_a_piped_text_waits_and_the_keyboard_is_taken(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("ERROR 42\n")
    with Terminal(["-i"], environment(tmp_path), redirection=f"<{tmp_path}/log") as terminal:
        terminal.wait_for_line("attached: stdin, 9 tokens")
        terminal.wait_for_prompt()
        terminal.send("what is it?", ENTER)
        terminal.wait_for_line("you said: what is it?")
        terminal.wait_for("ERROR 42")
        terminal.wait_for_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


def test_piped_lines_are_turns_where_the_answers_go_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\ntwo\n")
    redirection = f"<{tmp_path}/lines >{tmp_path}/answers"
    with Terminal(["-i"], environment(tmp_path), redirection=redirection) as terminal:
        assert terminal.exit_code() == 0
    assert (tmp_path / "answers").read_text() == "you said: one\nyou said: two\n"


def test_input_on_the_terminal(tmp_path: Path) -> None:
    script = tmp_path / "editor"
    script.write_text('#!/bin/sh\necho "from the editor" > "$1"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with Terminal(["-i"], environment(tmp_path, EDITOR=str(script), VISUAL="")) as terminal:
        terminal.wait_for_prompt()
        terminal.send("!echo hello", ENTER)
        terminal.wait_for_line("attach its 6 tokens to your next message? [y/N]")
        terminal.send("y", ENTER)
        terminal.wait_for_line("attached: $ echo hello, 6 tokens")
        terminal.wait_for_prompt()
        terminal.send("/multi", ENTER)
        terminal.wait_for("Enter begins a new line, Alt-Enter sends")
        terminal.wait_for_prompt()
        terminal.send("first", ENTER, "second", ALT_ENTER)
        terminal.wait_for_line("you said: first")
        terminal.wait_for_line("$ echo hello:")
        terminal.wait_for_prompt()
        terminal.send("/multi off", ENTER)
        terminal.wait_for_prompt()
        terminal.send("/edit draft", ENTER)
        terminal.wait_for_line("> from the editor")
        terminal.send(ENTER)
        terminal.wait_for_line("you said: from the editor")


def test_a_paste_of_a_megabyte(tmp_path: Path) -> None:
    """Without a screen, which would take most of the time."""
    text = "\n".join(f"line {index:05d} of a long text that was pasted as a whole @x" for index in range(18_000))
    assert len(text) > 1_000_000
    command = ["-m", "tests.cli.fake_main", "-i"]
    child = pexpect.spawn(
        sys.executable,
        command,
        env=environment(tmp_path),
        cwd=str(ROOT),
        timeout=PATIENCE,
        maxread=1 << 16,
        searchwindowsize=1 << 17,  # more than is read at once: a smaller one would pass over what stands before it
    )
    try:
        child.delaybeforesend = None
        child.expect_exact("\x1b[6n")
        child.send("\x1b[3;1R")  # the place of the cursor, which the editor asks for
        send_all(child, PASTE_BEGIN + text + PASTE_END)
        child.expect_exact("line 17999")
        child.send(ENTER)
        child.expect_exact("you said: ")
        last = text[text.rindex("\n") :].replace("\n", "\r\n")
        child.expect_exact(last)
        assert child.before + last.encode() == text.replace("\n", "\r\n").encode()
        child.send(CTRL_D)
        child.expect(pexpect.EOF)
    finally:
        end(child)
