"""Text from stdin: the sources that are read, the characters that bytes become, and the time of their arrival."""

from __future__ import annotations

import codecs
import io
import os
import pty
import socket
import threading
import time
from pathlib import Path

import pytest

from mistralrs.errors import MistralrsError
from mistralrs_cli.terminal import stdin_text as module
from mistralrs_cli.terminal.stdin_text import holds_text, lines, text_pieces, warn_of_waiting, without_mark

TEXT = "Grüße, 世界\nand 👋\n"


def written(data: bytes, encoding: str = "utf-8") -> io.TextIOWrapper:
    """A stdin that holds ``data`` and has ended."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return open(reading, encoding=encoding, errors="replace")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (TEXT.encode(), TEXT),
        (codecs.BOM_UTF8 + TEXT.encode(), TEXT),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), TEXT),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), TEXT),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), TEXT),
        (codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), TEXT),
        (b"", ""),
        (codecs.BOM_UTF8, ""),
        (codecs.BOM_UTF16_LE, ""),
        (codecs.BOM_UTF8[:2], "\ufffd"),
        (codecs.BOM_UTF16_LE + b"a\x00b", "a\ufffd"),
        (b"bad \xff byte", "bad \ufffd byte"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"a\xef\xbb\xbfb", "a\ufeffb"),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_bytes_become_text_however_they_arrive(
    monkeypatch: pytest.MonkeyPatch, data: bytes, text: str, step: int
) -> None:
    monkeypatch.setattr(module, "_PIECE", step)
    with written(data) as stdin:
        assert "".join(text_pieces(stdin)) == text


def test_the_locale_says_what_no_mark_says() -> None:
    for data, text in (("é".encode("latin-1"), "é"), (codecs.BOM_UTF8 + "é".encode(), "é")):
        with written(data, "latin-1") as stdin:
            assert "".join(text_pieces(stdin)) == text


def test_lines_come_before_the_end() -> None:
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as stdin:
        found = lines(stdin)
        os.write(writing, codecs.BOM_UTF16_LE + "one\n\ntw".encode("utf-16-le"))
        assert [next(found), next(found)] == ["one", ""]
        os.write(writing, "o\r\nthree".encode("utf-16-le"))
        os.close(writing)
        assert list(found) == ["two", "three"]


def test_a_pipe_that_does_not_wait_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def write() -> None:
        for piece in (b"first ", b"second"):
            time.sleep(0.1)
            os.write(writing, piece)
        os.close(writing)

    with open(reading, encoding="utf-8") as stdin:
        writer = threading.Thread(target=write)
        writer.start()
        assert "".join(text_pieces(stdin)) == "first second"
        writer.join()


def test_a_broken_connection_is_an_error() -> None:
    with socket.socket(socket.AF_UNIX) as alone, open(alone.detach(), encoding="utf-8") as stdin:
        with pytest.raises(MistralrsError, match="stdin cannot be read: ") as caught:
            list(text_pieces(stdin))
        assert caught.value.hint is not None
        assert "--no-stdin" in caught.value.hint


def test_where_text_is_looked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("text")
    reading, writing = os.pipe()
    here, there = socket.socketpair()
    keyboard, screen = pty.openpty()
    table = [
        (os.open(tmp_path / "file", os.O_RDONLY), True),
        (reading, True),
        (here.detach(), True),
        (os.open(os.devnull, os.O_RDONLY), False),
        (os.open(os.devnull, os.O_WRONLY), False),  # as nohup leaves it
        (screen, False),
    ]
    for descriptor, expected in table:
        with open(descriptor) as stdin:
            assert holds_text(stdin) is expected
    assert caplog.messages == []
    with open("/dev/zero") as stdin:
        assert not holds_text(stdin)
    assert "is a device and is not read" in caplog.text
    for each in (writing, keyboard, there.detach()):
        os.close(each)


def test_a_silent_pipe_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    reading, writing = os.pipe()
    with open(reading) as stdin:
        warn_of_waiting(stdin)
        assert "waiting for the end of stdin" in caplog.text
        caplog.clear()
        os.write(writing, b"x")
        warn_of_waiting(stdin)
        os.close(writing)
        warn_of_waiting(stdin)
    assert caplog.messages == []


def test_words_lose_their_mark() -> None:
    assert without_mark("\ufeffSay hi.\ufeff") == "Say hi.\ufeff"
