"""Text on its way to a stream: controls that must not arrive, line feeds that wait, lines about an answer."""

from __future__ import annotations

import io
import itertools
import pty
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mistralrs.engine.events import Usage
from mistralrs.errors import MistralrsError
from mistralrs_cli.terminal.output import (
    AnswerWriter,
    ProgressLine,
    Sanitizer,
    clean_line,
    escape_reordering,
    generation_rate,
    print_error,
    stats_line,
)

CONTROLS = {chr(code) for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} - {"\n", "\t"}
HOSTILE = st.text(
    alphabet=st.one_of(
        st.sampled_from(
            ["\x1b", "\x1b", "\x9b", "\x9d", "\x90", "\x07", "\x9c", "[", "]", "\\", "m", ";", "0", "\n", "\t"]
        ),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(HOSTILE, st.lists(st.integers(0, 60), max_size=6))
@example("\x1b]0;title\x07text", [1, 2])
@example("\x1b[31", [])
def test_no_control_arrives_however_the_text_is_cut(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in itertools.pairwise(places)]
    sanitizer = Sanitizer()
    shown = "".join([sanitizer.feed(piece) for piece in pieces])
    assert not CONTROLS & set(shown)
    assert shown == Sanitizer().feed(text)
    assert shown.count("\n") == text.count("\n")  # nothing swallows more than a line


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\n\t")))
def test_harmless_text_is_untouched(text: str) -> None:
    assert Sanitizer().feed(text) == text


def test_sequences_are_taken_out_whole() -> None:
    for sequence in (
        "\x1b[31m",
        "\x1b[?25l",
        "\x9b2J",
        "\x1b]52;c;aGk=\x07",
        "\x1b]0;title\x1b\\",
        "\x9d0;title\x9c",
        "\x1bPq#0\x1b\\",
        "\x1b(B",
        "\x1bc",
        "\r",
        "\x08",
        "\x7f",
    ):
        assert Sanitizer().feed(f"a{sequence}b") == "ab", repr(sequence)
    assert Sanitizer().feed("a\x1b]no end\nb") == "a\nb"
    assert Sanitizer().feed("a\x1b[3\x1b[31mb") == "ab"


def test_writer_ends_with_one_line_feed_and_keeps_the_text() -> None:
    for pieces, written in (
        (["a", "\n\n"], "a\n"),
        (["a\n", "\nb"], "a\n\nb\n"),
        (["\n"], "\n"),
        ([], "\n"),
        (["a\n"] * 3, "a\na\na\n"),
    ):
        stream = io.StringIO()
        writer = AnswerWriter(stream)
        for piece in pieces:
            writer.write(piece)
        writer.end()
        assert stream.getvalue() == written
        assert writer.text == "".join(pieces)


def test_writer_is_raw_except_on_a_terminal() -> None:
    for stream, written in ((io.StringIO(), "a\x1b[1mb\n"), (FakeTerminal(), "ab\n")):
        writer = AnswerWriter(stream)
        writer.write("a\x1b[")
        writer.write("1mb")
        writer.end()
        assert stream.getvalue() == written
        assert writer.text == "a\x1b[1mb"


OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@given(st.text(alphabet=st.sampled_from(OVERRIDES + "ab\n")), st.integers(0, 9))
def test_nothing_reorders_a_terminal(text: str, cut: int) -> None:
    stream = FakeTerminal()
    writer = AnswerWriter(stream)
    for piece in (text[:cut], text[cut:]):
        writer.write(piece)
    writer.end()
    assert not set(OVERRIDES) & set(stream.getvalue())
    assert stream.getvalue().rstrip("\n") == "".join(
        f"\\u{ord(character):04x}" if character in OVERRIDES else character for character in text
    ).rstrip("\n")
    assert writer.text == text


@pytest.mark.parametrize(
    "text",
    [
        "\u05e9\u05dc\u05d5\u05dd\u200f! (C++\u200e)",  # Hebrew with marks of direction
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u061c12",  # Persian with a joiner that does not join
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",  # a family, a heart
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # the flag of Scotland
        "co\u00adop",
    ],
)
def test_honest_answers_are_untouched(text: str) -> None:
    assert escape_reordering(text) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model\u202eguff.exe", "model\\u202eguff.exe"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("a\u200eb\u200fc\u061cd", "a\\u200eb\\u200fc\\u061cd"),
        ("lla\u200bma\u200c\u200d\u2060\ufeff", "lla\\u200bma\\u200c\\u200d\\u2060\\ufeff"),
        ("one\u2028two\u2029three", "one\\u2028two\\u2029three"),
        ("a\ufff9b\ufffac\ufffb", "a\\ufff9b\\ufffac\\ufffb"),
        ("a\U000e0001\U000e0041", "a\\U000e0001\\U000e0041"),
        ("a\u3164b", "a\\u3164b"),
        ("bad\udcff.gguf", "bad\\udcff.gguf"),
        ("\u05e9\u05dc\u05d5\u05dd \u0645\u0631 \u0661\u06dd \u4e16 \U0001f600 \u2764\ufe0f e\u0301", None),
    ],
)
def test_names_show_what_is_in_them(name: str, shown: str | None) -> None:
    assert clean_line(name) == (name if shown is None else shown)
    stream = io.StringIO()
    print_error(stream, MistralrsError(f"{name}: no such file", hint=name))
    assert stream.getvalue() == f"error: {shown or name}: no such file\nhint: {shown or name}\n"


def test_errors_are_one_line_and_a_hint_without_controls() -> None:
    stream = io.StringIO()
    print_error(stream, MistralrsError("no\x1b[31m such\nfile", hint="try\nthis"))
    assert stream.getvalue() == "error: no such file\nhint: try\n      this\n"
    stream = io.StringIO()
    print_error(stream, MistralrsError("plain"))
    assert stream.getvalue() == "error: plain\n"
    assert clean_line("a\tb\n c") == "a b c"


def test_stats_line() -> None:
    usage = Usage(
        prompt_tokens=1840,
        cached_tokens=1812,
        completion_tokens=312,
        prompt_s=0.6,
        completion_s=311 / 21.4,
        first_token_s=0.61,
        seed=42,
    )
    expected = "312 tok · 21.4 tok/s · first 0.6 s · cached 1 812/1 840 · context 2 152/8 192 (26 %) · seed 42"
    assert stats_line(usage, 8192) == expected
    drafted = stats_line(replace(usage, drafted_tokens=1300, accepted_tokens=96), 8192)
    assert drafted == expected.replace(" · context", " · drafts 96/1 300 · context")
    assert generation_rate(Usage(5, 0, 0, 0.0, 0.0, 0.0, 0)) == 0.0
    assert "0 tok · 0.0 tok/s" in stats_line(Usage(0, 0, 0, 0.0, 0.0, 0.0, 0), 0)


def test_progress_can_be_cleared_in_the_midst_of_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()

    class Interrupted(io.FileIO):
        def write(self, data: Any, /) -> int:
            line.clear()  # as the handler of a signal does
            return super().write(data)

    terminal = io.BufferedWriter(Interrupted(slave, "w"))
    with (
        open(master, "rb", buffering=0) as screen,
        io.TextIOWrapper(terminal) as stream,
        monkeypatch.context() as patch,
    ):
        patch.setattr(ProgressLine, "DELAY", 0.0)
        patch.setenv("TERM", "xterm")
        line = ProgressLine(stream)
        line("loading", 1, 2)
        stream.write("a note")
        stream.flush()
        written = b""
        while not written.endswith(b"note"):
            written += screen.read(1000)
    assert written == b"\rloading 50 %\x1b[K\r\x1b[Ka note"


def test_an_action_that_fails_keeps_no_other_from_being_done() -> None:
    script = (
        "import os, signal\n"
        "from mistralrs_cli.terminal.exits import leaving_at_once\n"
        "with leaving_at_once(lambda: 1 / 0, lambda: print('restored', flush=True)):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "restored\n")


def test_progress_is_silent_where_nobody_looks() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.DELAY = 0.0
    line("loading", 1, 2)
    line.clear()
    assert stream.getvalue() == ""
