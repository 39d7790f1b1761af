"""The chat on a real terminal: keys in, screens out."""

from __future__ import annotations

import json
import re
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.cli.terminal import (
    ALT_ENTER,
    CTRL_C,
    CTRL_D,
    CTRL_J,
    ENTER,
    PASTE_BEGIN,
    PASTE_END,
    UP,
    Terminal,
    environment,
)


def messages_on(screen: list[str]) -> list[dict[str, str]]:
    """The conversation that the model was asked to show, however the screen broke its line."""
    text = "".join(screen)
    found = re.findall(r"\[\{.*?\}\](?=>|$|\s)", text)
    messages: list[dict[str, str]] = json.loads(found[-1])
    return messages


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def start(home: Path, *arguments: str, **extra: str) -> Terminal:
    terminal = Terminal(["-i", *arguments], environment(home, **extra))
    terminal.wait_for_prompt()
    return terminal


def test_banner_answer_and_ctrl_d(home: Path) -> None:
    with start(home) as terminal:
        opening = terminal.lines()
        assert opening[0] == "Fake-1B · llama · Q4_1 · cpu avx2, 2 threads · context 8 192"
        assert len(opening) <= 4  # the banner of three lines at most, and the prompt
        terminal.send("hello", ENTER)
        terminal.wait_for_line("you said: hello")
        terminal.wait_for_prompt()
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


def test_conversation_is_sent_whole_and_clear_forgets_it(home: Path) -> None:
    with start(home, "--system", "be brief") as terminal:
        terminal.send("one", ENTER)
        terminal.wait_for_line("you said: one")
        terminal.wait_for_prompt()
        terminal.send("messages", ENTER)
        assert messages_on(terminal.wait_for("}]")) == [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "you said: one"},
            {"role": "user", "content": "messages"},
        ]
        terminal.wait_for_prompt()
        terminal.send("/clear", ENTER)
        terminal.wait_for("the conversation is empty")
        terminal.send("/system", ENTER)
        terminal.wait_for_line("system message: be brief")
        terminal.send("/system be kind", ENTER)
        terminal.wait_for_line("system message: be kind")
        terminal.send("messages again", ENTER)
        terminal.wait_for('again"}]')
        assert messages_on(terminal.wait_for_prompt())[0] == {"role": "system", "content": "be kind"}
        terminal.send('/system ""', ENTER)
        terminal.wait_for_line("no system message")


@pytest.mark.parametrize("command", ["/exit", "/bye", "\\exit"])
def test_leaving(home: Path, command: str) -> None:
    with start(home) as terminal:
        assert not terminal.echoes()
        terminal.send(command, ENTER)
        assert terminal.exit_code() == 0
        assert terminal.echoes()


def test_commands_that_do_not_fit_are_not_sent(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("/hlep", ENTER)
        screen = terminal.wait_for("no such command: /hlep")
        assert any("did you mean /help?" in line for line in terminal.wait_for("hint:") or screen)
        terminal.send("/clear everything", ENTER)
        terminal.wait_for("/clear takes nothing after it")
        terminal.send("//etc is a folder", ENTER)
        terminal.wait_for_line("you said: /etc is a folder")
        terminal.send("/help", ENTER)
        terminal.wait_for("/stats [on|off]")
        terminal.send("/help bye", ENTER)
        terminal.wait_for("also: /bye")
        assert "you said: /hlep" not in "\n".join(terminal.lines())


def test_adapters_are_listed_and_chosen(home: Path) -> None:
    words = [f"{name}={home}" for name in ("style", "law")]
    with start(home, "--lora", words[0], "--lora", words[1], "--adapter", "style") as terminal:
        assert terminal.lines()[1] == "adapters: style, law; 1 active"
        terminal.send("/adapter", ENTER)
        terminal.wait_for_line("style  acts, weight 1")
        terminal.wait_for_line("law")
        terminal.send("adapters", ENTER)
        terminal.wait_for_line("null")
        terminal.send("/adapter law:0.5 style", ENTER)
        terminal.wait_for_line("acting from now on: law:0.5, style")
        terminal.send("adapters again", ENTER)
        terminal.wait_for_line('{"law": 0.5, "style": 1.0}')
        terminal.send("/adapter list", ENTER)
        terminal.wait_for_line("law    acts, weight 0.5")
        terminal.send("/adapter physics", ENTER)
        terminal.wait_for("there is no adapter 'physics'")
        terminal.wait_for("known are style, law")
        terminal.send("/adapter law:heavy", ENTER)
        terminal.wait_for("/adapter: law:heavy: 'heavy' is no weight")
        terminal.send("/adapter none", ENTER)
        terminal.wait_for_line("acting from now on: none")
        terminal.send("adapters at last", ENTER)
        terminal.wait_for_line("{}")


def test_without_adapters_none_can_be_chosen(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("/adapter", ENTER)
        terminal.wait_for("no adapter can be chosen")
        terminal.send("/adapter style", ENTER)
        terminal.wait_for("--lora NAME=SOURCE loads one at the start")


def test_scalings_are_drawn(home: Path) -> None:
    (home / "base").mkdir()
    with start(home, "auto", str(home / "base"), "--xlora", str(home)) as terminal:
        terminal.send("/scalings", ENTER)
        terminal.wait_for_line("no answer yet")
        terminal.send("hello", ENTER)
        terminal.wait_for_line("you said: hello")
        terminal.wait_for_prompt()
        terminal.send("/scalings", ENTER)
        terminal.wait_for_line("mean over the layers: █ 0.40")
        assert terminal.wait_for_prompt()[-5:-1] == ["      ab", "music ██", "law   ░░", "mean over the layers: █ 0.40"]


def test_without_x_lora_there_are_no_scalings(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("hello", ENTER)
        terminal.wait_for_line("you said: hello")
        terminal.send("/scalings", ENTER)
        terminal.wait_for("scalings are those of X-LoRA, and this model is none")


def test_new_lines(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("a", ALT_ENTER, "b", CTRL_J, "c\\", ENTER, "d", ENTER)
        screen = terminal.wait_for_line("you said: a")
        screen = terminal.wait_for_prompt()
        assert screen[2:6] == ["> a", "... b", "... c", "... d"]
        assert screen[6:10] == ["you said: a", "b", "c", "d"]


def test_block_between_quotes(home: Path) -> None:
    with start(home) as terminal:
        terminal.send('"""', ENTER, "first", ENTER, "/help", ENTER, '"""', ENTER)
        terminal.wait_for_line("you said: first")
        screen = terminal.wait_for_prompt()
        assert screen[screen.index("you said: first") + 1] == "/help"


def test_paste_is_not_sent_until_enter(home: Path) -> None:
    with start(home) as terminal:
        terminal.send(PASTE_BEGIN + "line 1\nline 2\n\nline 4" + PASTE_END)
        terminal.wait_for_line("... line 4")
        assert not any("you said" in line for line in terminal.lines())
        terminal.send(ENTER)
        terminal.wait_for_line("you said: line 1")
        terminal.wait_for_line("line 4")


def test_ctrl_c_keeps_the_part_that_came(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("slow", ENTER)
        terminal.wait_for("word3")
        terminal.send(CTRL_C)
        terminal.wait_for_prompt()
        terminal.send("messages", ENTER)
        terminal.wait_for("}]")
        conversation = messages_on(terminal.wait_for_prompt())
        assert [each["role"] for each in conversation] == ["user", "assistant", "user"]
        assert conversation[1]["content"].startswith("word0 word1 word2 word3 ")
        assert len(conversation[1]["content"].split()) < 1000


@pytest.mark.parametrize(("word", "shown"), [("prefill", "reading 1 240/3 900 tokens"), ("preparing", "preparing")])
def test_ctrl_c_before_the_answer_gives_the_text_back(home: Path, word: str, shown: str) -> None:
    with start(home) as terminal:
        terminal.send(f"{word} of a long text", ENTER)
        terminal.wait_for_line(shown)
        terminal.send(CTRL_C)
        terminal.wait_for_line(f"> {word} of a long text", times=2)
        terminal.send(CTRL_C)  # clears the line
        terminal.wait_for_prompt()
        terminal.send("messages", ENTER)
        terminal.wait_for("}]")
        assert messages_on(terminal.wait_for_prompt()) == [{"role": "user", "content": "messages"}]


def test_ctrl_c_at_the_prompt(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("half a thought", CTRL_C)
        terminal.wait_for_prompt()
        time.sleep(1.1)
        terminal.send(CTRL_C)
        terminal.wait_for("Ctrl-D or /exit leaves")
        terminal.wait_for_prompt()
        terminal.send("still here", ENTER)
        terminal.wait_for_line("you said: still here")
        terminal.wait_for_prompt()
        terminal.send(CTRL_C)
        terminal.wait_for_line("Ctrl-D or /exit leaves; so does Ctrl-C twice", times=2)
        terminal.send_until_the_end(CTRL_C, answer="so does Ctrl-C twice")
        assert terminal.exit_code() == 130


def test_errors_do_not_end_the_chat(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("too-long text", ENTER)
        terminal.wait_for("error: This model's maximum context length is 8192 tokens.")
        terminal.wait_for_prompt()
        terminal.send(UP)
        terminal.wait_for_line("> too-long text", times=2)
        terminal.send(CTRL_C, "fail", ENTER)
        terminal.wait_for_line("error: the engine broke")
        terminal.wait_for_prompt()
        terminal.send("messages", ENTER)
        terminal.wait_for("}]")
        assert messages_on(terminal.wait_for_prompt()) == [{"role": "user", "content": "messages"}]


def test_cut_and_statistics(home: Path) -> None:
    with start(home, "--seed", "42") as terminal:
        terminal.send("/stats", ENTER)
        terminal.wait_for_line("no answer yet")
        terminal.send("long", ENTER)
        terminal.wait_for_line("cut here...")
        terminal.send("/stats", ENTER)
        line = "1 tok · 0.0 tok/s · first 0.6 s · cached 1 812/2 000 · context 2 001/8 192 (24 %) · seed 42"
        terminal.wait_for_line(line)
        terminal.send("/stats on", ENTER)
        terminal.wait_for_prompt()
        terminal.send("hello", ENTER)
        terminal.wait_for_line(line, times=2)
        terminal.send("/stats off", ENTER, "bye", ENTER)
        terminal.wait_for_line("you said: bye")
        assert terminal.wait_for_prompt().count(line) == 2


def test_nothing_reorders_the_terminal(home: Path) -> None:
    with Terminal(["--prompt", "a\u202eb\u2066c\u200d"], environment(home)) as terminal:
        assert terminal.exit_code() == 0
        assert terminal.raw.startswith("you said: a\\u202eb\\u2066c\u200d".encode())
    with Terminal(["--prompt", "x"], environment(home, FAKE_LOAD_ERROR="a\u202eb\u200d")) as terminal:
        assert terminal.exit_code() == 3
        assert terminal.raw.startswith(b"error: a\\u202eb\\u200d\r\n")


def test_history_is_private_appended_and_keeps_secrets_out(home: Path) -> None:
    with start(home) as terminal:
        terminal.send("first", ALT_ENTER, "second line", ENTER)
        terminal.wait_for_line("you said: first")
        path = home / "state" / "mistralrs" / "history"
        assert "+first\n+second line\n" in path.read_text()  # at once, not at the end
        terminal.send(" a secret", ENTER)
        terminal.wait_for("you said:  a secret")
        assert "secret" not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with start(home) as terminal:
        terminal.send(UP)
        terminal.wait_for_line("... second line")
        terminal.send(ENTER)
        terminal.wait_for_line("you said: first")


def test_history_that_cannot_be_written_is_said_once(home: Path) -> None:
    (home / "state").write_text("a file where a folder should be")
    with start(home) as terminal:
        terminal.send("one", ENTER)
        terminal.wait_for_line("you said: one")
        terminal.wait_for_prompt()
        terminal.send("two", ENTER)
        terminal.wait_for_line("you said: two")
        assert "\n".join(terminal.lines()).count("the history is not kept") == 1


@pytest.mark.parametrize("during", ["", "slow"])
def test_sigterm(home: Path, during: str) -> None:
    with start(home, FAKE_SAYS_CLOSED="1") as terminal:
        if during:
            terminal.send(during, ENTER)
            terminal.wait_for("word3")
        terminal.child.kill(signal.SIGTERM)
        assert terminal.exit_code() == 143
        assert terminal.echoes()
        assert b"closed" in terminal.raw


def test_sigint_from_outside_is_ctrl_c(home: Path) -> None:
    with start(home) as terminal:
        terminal.child.kill(signal.SIGINT)
        terminal.wait_for("Ctrl-D or /exit leaves")
        terminal.send("hello", ENTER)
        terminal.wait_for_line("you said: hello")


def test_what_is_typed_early_is_kept(home: Path) -> None:
    with Terminal(["-i"], environment(home, FAKE_LOAD_S="1.0", FAKE_SAYS_BEGUN="1")) as terminal:
        terminal.wait_for_line("loading")
        terminal.send("typed early", ENTER)
        terminal.wait_for_line("you said: typed early")
        terminal.send("slow", ENTER)
        terminal.wait_for("word2")
        terminal.send("typed in between", ENTER, CTRL_C)
        terminal.wait_for_line("you said: typed in between")


def test_answers_into_a_file_leave_the_editor_on_the_terminal(home: Path) -> None:
    with Terminal(["-i"], environment(home), redirection=f">{home}/answers") as terminal:
        terminal.wait_for_prompt()
        terminal.send("escape", ENTER, "two", ENTER, CTRL_D)
        assert terminal.exit_code() == 0
        assert (home / "answers").read_bytes().endswith(b"d\te\r\n\x1b\nyou said: two\n")


def test_lines_are_read_where_no_editor_can_be_shown(home: Path) -> None:
    with Terminal(["-i"], environment(home), redirection=f">{home}/answers 2>&1") as terminal:
        terminal.send("one\n", "two\n", CTRL_D)
        assert terminal.exit_code() == 0
        assert (home / "answers").read_text() == "you said: one\nyou said: two\n"


def test_resize(home: Path) -> None:
    with start(home) as terminal:
        terminal.resize(20, 50)
        terminal.wait_for_prompt()
        terminal.send("hello", ENTER)
        terminal.wait_for_line("you said: hello")


MARKDOWN = "**bold** and `code`"


def test_answers_are_drawn_as_markdown(home: Path) -> None:
    with start(home) as terminal:
        terminal.send(MARKDOWN, ENTER)
        terminal.wait_for_line("you said: bold and code")
        assert terminal.child.isalive()


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["--plain"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})],
    ids=["--plain", "NO_COLOR", "TERM=dumb"],
)
def test_plain_answers_stay_as_they_are(home: Path, arguments: list[str], extra: dict[str, str]) -> None:
    with Terminal(["-i", *arguments], environment(home, **extra)) as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.send(MARKDOWN, ENTER)
        terminal.wait_for(f"you said: {MARKDOWN}")


def test_dumb_terminal(home: Path) -> None:
    with Terminal(["-i"], environment(home, TERM="dumb")) as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.send("hello", ENTER)
        terminal.wait_for("you said: hello")
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
        assert b"\x1b[31m" not in terminal.raw


def test_ctrl_c_while_loading(home: Path) -> None:
    with Terminal(["-i"], environment(home, FAKE_LOAD_S="30")) as terminal:
        terminal.wait_for("loading weights")
        assert not terminal.echoes()
        terminal.send(CTRL_C)
        assert terminal.exit_code() == 130
        assert terminal.echoes()
        assert terminal.lines() == [""]


def test_load_progress_appears_late_and_goes(home: Path) -> None:
    with Terminal(["--prompt", "hi", "--no-stdin"], environment(home, FAKE_LOAD_S="0.8")) as terminal:
        assert terminal.exit_code() == 0
        assert b"loading weights" in terminal.raw
        assert not any("loading" in line for line in terminal.lines())
        assert "you said: hi" in terminal.lines()
    with Terminal(["--prompt", "hi"], environment(home, FAKE_LOAD_S="0.05")) as terminal:
        assert terminal.exit_code() == 0
        assert b"loading" not in terminal.raw


def test_one_shot_on_a_terminal_says_its_speed(home: Path) -> None:
    with Terminal(["--prompt", "escape"], environment(home)) as terminal:
        assert terminal.exit_code() == 0
        assert terminal.lines() == ["abcd    e", "Prompt T/s = 4000.0", "Completion T/s = 16.0"]


def test_one_shot_ctrl_c_keeps_what_was_printed(home: Path) -> None:
    with Terminal(["--prompt", "slow"], environment(home)) as terminal:
        terminal.wait_for("word2")
        terminal.send(CTRL_C)
        assert terminal.exit_code() == 130
        assert terminal.lines()[0].startswith("word0 word1 word2")
