"""Ten promises to terminals and pipes, each through a real terminal: screens as text, exit codes, and every byte."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.cli.scrollback import SIZES
from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, PASTE_BEGIN, PASTE_END, UP, Terminal, environment

SCREENS = Path(__file__).parent / "screens"
STYLE = re.compile(rb"\x1b\[[0-9;]*m")


def chat(home: Path, *arguments: str, columns: int = 100, lines: int = 40, **variables: str) -> Terminal:
    terminal = Terminal(["-i", *arguments], environment(home, **variables), columns=columns, lines=lines)
    terminal.wait_for_prompt()
    return terminal


def test_1_pipes_carry_the_answer_alone(tmp_path: Path) -> None:
    program = Program(tmp_path)
    assert program("--prompt", "newlines **x**") == (0, "one\n\ntwo\n", "")
    long = "word " * 100 + "**x**"
    assert program("--prompt", "-", stdin=long.encode()) == (0, f"you said: {long}\n", "")
    assert program("-i", stdin=b"page\n")[1].count("```") == 2


@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_2_screens(tmp_path: Path, columns: int, lines: int) -> None:
    """The captures are written anew with ``MISTRALRS_WRITE_SCREENS=1``."""
    with chat(tmp_path, columns=columns, lines=lines) as terminal:
        terminal.send("page", ENTER)
        terminal.wait_for("Its area is π r²")
        terminal.wait_for_prompt()
        shown = "\n".join(terminal.lines_with_meter()) + "\n"
    capture = SCREENS / f"{columns}x{lines}.txt"
    if os.environ.get("MISTRALRS_WRITE_SCREENS"):
        capture.write_text(shown, encoding="utf-8")
    assert shown == capture.read_text(encoding="utf-8")


def test_2_another_size_in_mid_answer(tmp_path: Path) -> None:
    with chat(tmp_path) as terminal:
        terminal.send("slow", ENTER)
        terminal.wait_for("word3")
        terminal.resize(20, 40)
        terminal.wait_for("word25")
        terminal.resize(24, 80)
        terminal.wait_for("word45")
        terminal.send(CTRL_C)
        text = " ".join(terminal.wait_for_prompt())
        numbers = [int(number) for number in re.findall(r"word(\d+)", text)]
        assert sorted(set(numbers)) == list(range(min(numbers), max(numbers) + 1))
        terminal.send("hello", ENTER)
        terminal.wait_for_line("you said: hello")


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_3_and_4_no_colours_where_none_are_wanted(tmp_path: Path, variables: dict[str, str]) -> None:
    with Terminal(["--prompt", "page"], environment(tmp_path, **variables), columns=40) as terminal:
        assert terminal.exit_code() == 0
        answer = terminal.raw.partition(b"Prompt T/s")[0]
    assert b"\x1b" not in answer
    lines = answer.decode().replace("\r\n", "\n").split("\n")
    assert lines[0] == "# Une page"
    assert "**bold**," in " ".join(lines).split()
    assert max(map(len, lines)) <= 40


def test_5_a_closed_output_ends_it_quietly(tmp_path: Path) -> None:
    with Terminal(["--prompt", "flood"], environment(tmp_path), redirection="| head -n 1; echo over") as terminal:
        assert terminal.exit_code() == 0
        screen = terminal.lines()
    assert screen[-1] == "over"
    assert set("".join(screen[:-1])) == set("0123456789")


def _while_loading(home: Path) -> Terminal:
    terminal = Terminal(["-i"], environment(home, FAKE_LOAD_S="30"))
    terminal.wait_for("loading weights")
    return terminal


def _while_reading(home: Path) -> Terminal:
    terminal = chat(home)
    terminal.send("prefill of a text", ENTER)
    terminal.wait_for("reading 1 240/3 900 tokens")
    return terminal


def _while_answering(home: Path) -> Terminal:
    terminal = chat(home)
    terminal.send("slow", ENTER)
    terminal.wait_for("word3")
    return terminal


@pytest.mark.parametrize(
    ("begin", "line"),
    [(_while_loading, None), (_while_reading, "> prefill of a text"), (_while_answering, ">"), (chat, ">")],
)
def test_6_ctrl_c(tmp_path: Path, begin: Callable[[Path], Terminal], line: str | None) -> None:
    with begin(tmp_path) as terminal:
        terminal.send(CTRL_C)
        if line is None:
            assert terminal.exit_code() == 130
        else:
            screen = terminal.wait_for_line(line, times=2 if begin in (_while_reading, chat) else 1)
            assert not any("reading" in each for each in screen)
            if line != ">":
                terminal.send(CTRL_C)  # empties the line
            terminal.wait_for_prompt()
            terminal.send("hello", ENTER)
            terminal.wait_for_line("you said: hello")
        assert b"Traceback" not in terminal.raw
        assert line is not None or terminal.echoes()


def test_7_the_end_of_the_input_ends_it(tmp_path: Path) -> None:
    with chat(tmp_path) as terminal:
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
        assert terminal.echoes()
    assert Program(tmp_path)("-i", stdin=b"hello")[:2] == (0, "you said: hello\n")


def test_8_no_escape_sequence_of_others_reaches_the_terminal(tmp_path: Path) -> None:
    title, named = "\x1b]0;title\x07", "na\x9b31mme"
    with chat(tmp_path) as terminal:
        terminal.send("escape", ENTER)
        terminal.wait_for_line("abcd    e")
        terminal.wait_for_prompt()
        terminal.send(PASTE_BEGIN + f"/rename {title}{named}" + PASTE_END, ENTER, "/sessions", ENTER)
        terminal.wait_for_prompt()
        terminal.send(PASTE_BEGIN + f"/import {title}/absent" + PASTE_END, ENTER)
        terminal.wait_for("error: ")
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
        raw = terminal.raw
    assert b"\x1b]" not in raw
    assert b"\x1b[31m" not in raw
    assert b"\xc2\x9b" not in raw
    model = tmp_path / "a\x1b[31mb.gguf"
    with Terminal(["--prompt", "x", "gguf", "-f", str(model)], environment(tmp_path)) as terminal:
        assert terminal.exit_code() == 3
        assert b"\x1b" not in STYLE.sub(b"", terminal.raw)
        assert b"\x1b[31m" not in terminal.raw


def test_9_a_large_paste_is_one_message(tmp_path: Path) -> None:
    text = "\n".join(f"line {index:05d} of a long text that was pasted as a whole" for index in range(2000))
    assert len(text) > 100_000
    with chat(tmp_path, "--plain", columns=120) as terminal:
        terminal.send(PASTE_BEGIN + text + PASTE_END)
        terminal.wait_for("line 01999")
        terminal.send(ENTER)
        terminal.wait_for_prompt()
        assert f"you said: {text}".replace("\n", "\r\n").encode() in terminal.raw


def test_10_two_terminals_share_history_and_chats(tmp_path: Path) -> None:
    with chat(tmp_path) as one, chat(tmp_path) as two:
        for number in range(3):
            for name, terminal in (("one", one), ("two", two)):
                terminal.send(f"{name} {number}", ENTER)
                terminal.wait_for_line(f"you said: {name} {number}")
                terminal.wait_for_prompt()
        one.send("/sessions", ENTER)
        listed = "\n".join(one.wait_for("two 0"))
        assert "one 0" in listed
        for terminal in (one, two):
            terminal.send(CTRL_D)
            assert terminal.exit_code() == 0
    history = (tmp_path / "state" / "mistralrs" / "history").read_text(encoding="utf-8")
    assert [history.count(f"+{name} {number}\n") for name in ("one", "two") for number in range(3)] == [1] * 6
    with chat(tmp_path) as terminal:
        terminal.send(UP, UP)
        terminal.wait_for("> two 2")


def test_the_line_shows_model_and_context_and_cuts_are_said(tmp_path: Path) -> None:
    with chat(tmp_path, "--max-tokens", "1") as terminal:
        assert terminal.lines_with_meter()[-1].endswith(" Fake-1B")
        terminal.send("long", ENTER)
        terminal.wait_for_line("[stopped at max tokens: /continue]")
        terminal.wait_for_prompt()
        assert terminal.lines_with_meter()[-1].endswith(" Fake-1B · context 24 %")
        terminal.send("/new", ENTER)
        terminal.wait_for("the conversation is empty")
        terminal.wait_for_prompt()
        assert terminal.lines_with_meter()[-1].endswith(" Fake-1B")
    with chat(tmp_path, "--max-tokens", "9") as terminal:
        terminal.send("long", ENTER)
        terminal.wait_for_line("[stopped at the end of the context]")


def test_pipes_show_no_progress(tmp_path: Path) -> None:
    with Program(tmp_path).start("--prompt", "prefill") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=3)
        process.kill()
        out, err = process.communicate()
    assert (out, err) == (b"", b"")
