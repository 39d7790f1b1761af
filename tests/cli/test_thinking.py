"""A model's thinking: on a terminal's stderr and nowhere else, and never in the answer."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mistralrs.api.read_stream import Thought
from mistralrs.engine.events import Delta, Event, Finished, Usage
from mistralrs_cli.printing.answer import TextPieces, relay
from mistralrs_cli.printing.thoughts import Thoughts
from tests.cli.terminal import CTRL_D, ENTER, Terminal, environment
from tests.cli.test_streams import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [([], None), (["--think", "on"], True), (["--think", "off"], False), (["--think", "hide"], None)],
)
def test_pipes_get_the_answer_alone(program: Program, arguments: list[str], asked: bool | None) -> None:
    assert program("--prompt", "think", *arguments) == (0, f"answer {asked}\n", "")
    assert program("-i", *arguments, stdin=b"think\n") == (0, f"answer {asked}\n", "")


def test_another_word_is_refused(program: Program) -> None:
    code, out, err = program("--prompt", "think", "--think", "much")
    assert (code, out) == (2, "")
    assert "--think" in err


@pytest.mark.parametrize(
    ("arguments", "is_shown"), [([], True), (["--think", "on"], True), (["--think", "hide"], False)]
)
def test_a_chat_shows_it_dim(tmp_path: Path, arguments: list[str], is_shown: bool) -> None:
    with Terminal(["-i", *arguments], environment(tmp_path)) as terminal:
        terminal.wait_for_prompt()
        terminal.send("think", ENTER)
        terminal.wait_for("answer ")
        lines = [line.strip() for line in terminal.wait_for_prompt()]
        assert ("I think hard." in lines) is is_shown
        assert any(line.startswith("thought for 0.") for line in lines) is not is_shown
        assert not any("[31m" in line for line in lines)
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


class Recorded:
    """A stream of an answer that thinks, in 412 tokens."""

    def __iter__(self) -> Iterator[Event | Thought]:
        yield Thought("a\x1b[31m")
        yield Delta("", tuple(range(412)), ())
        yield Delta("b", (9,), ())
        yield Finished("stop", Usage(1, 0, 413, 0.0, 0.0, 0.0, 0))

    def prompt_progress(self) -> None:
        return None

    def cancel(self) -> None:
        raise AssertionError


def test_hidden_thinking_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    times = itertools.chain((1.0,), itertools.repeat(4.21))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    screen, pieces = Screen(), TextPieces()
    relay(Recorded(), pieces, Thoughts(screen, shown=False, summed=True))
    meanwhile, _, afterwards = screen.getvalue().partition("\r\x1b[K")
    assert "thinking for 3.2 s" in meanwhile
    assert "thought for 3.2 s (412 tokens)" in afterwards
    assert "thinking" not in afterwards
    assert "\x1b[31m" not in screen.getvalue()
    assert pieces.text == "b"


@pytest.mark.parametrize(
    ("arguments", "is_shown"), [([], False), (["--think", "on"], True), (["--think", "hide"], False)]
)
def test_a_prompt_shows_it_if_asked(tmp_path: Path, arguments: list[str], is_shown: bool) -> None:
    with Terminal(["--prompt", "think", *arguments], environment(tmp_path)) as terminal:
        terminal.wait_for("answer ")
        assert terminal.exit_code() == 0
        assert any("I think hard." in line for line in terminal.lines()) is is_shown


def test_objects_have_it_beside_the_answer(program: Program) -> None:
    def records(*words: str, stdin: bytes | None = None) -> list[dict[str, object]]:
        code, out, err = program(*words, stdin=stdin)
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    thought = "I \x1b[31mthink hard.\n"
    for words, stdin in (
        (["--prompt", "think", "--json"], None),
        (["--prompt-file", "-", "--jsonl"], b"think\n"),
        (["--chat-jsonl"], b'{"role": "user", "content": "think"}\n'),
    ):
        (record,) = records(*words, stdin=stdin)
        assert (record.get("text", record.get("content")), record["reasoning"]) == ("answer None", thought)
        (record,) = records(*words, "--think", "off", stdin=stdin)
        assert "reasoning" not in record
