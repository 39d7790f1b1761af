"""Notes of a chat on a terminal."""

from __future__ import annotations

import os
import pty
import re
import termios

import pytest

from mistralrs_cli.chat.render import Notes, banner
from tests.cli.fake import FakeAdapters, FakeInfo


def test_notes_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    note = "the answer repeats itself word for word; /retry dry answers anew, against repetition"
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 20))
    with open(slave, "w", encoding="utf-8") as stream:
        Notes(stream).say(note, "x" * 30)
        written = b""
        while written.count(b"x") < 30 or not written.endswith(b"\n"):
            written += os.read(master, 4096)
    os.close(master)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).splitlines()
    assert max(map(len, lines)) <= 20
    assert lines[-2:] == ["x" * 20, "x" * 10]
    assert " ".join(line.rstrip() for line in lines[:-2]) == note


def test_the_opening_names_a_small_kv_cache() -> None:
    openings = [banner(FakeInfo(kv_cache_dtype=dtype), FakeAdapters((), {}))[0] for dtype in ("bf16", "q8_0")]
    assert ["KV cache in q8_0, 23.0 kB a token" in opening for opening in openings] == [False, True]
