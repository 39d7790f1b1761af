"""The keyboard while no line is edited."""

from __future__ import annotations

import os
import pty
import signal
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from mistralrs_cli.terminal.keyboard import kept_typing


@pytest.fixture
def keyboard() -> Iterator[TextIO]:
    master, slave = pty.openpty()
    with open(slave, encoding="utf-8") as opened:
        yield opened
    os.close(master)


def local_modes(keyboard: TextIO) -> int:
    modes: int = termios.tcgetattr(keyboard)[3]
    return modes & (termios.ECHO | termios.ICANON)


def test_a_shell_that_gives_the_terminal_back(keyboard: TextIO) -> None:
    """After Ctrl-Z and ``fg`` the terminal has the shell's modes: typing would be echoed into an answer."""
    before, handler = termios.tcgetattr(keyboard), signal.getsignal(signal.SIGCONT)
    with kept_typing(keyboard) as restore:
        assert local_modes(keyboard) == 0
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
        os.kill(os.getpid(), signal.SIGCONT)
        assert local_modes(keyboard) == 0
        restore()
        assert termios.tcgetattr(keyboard) == before
    assert termios.tcgetattr(keyboard) == before
    assert signal.getsignal(signal.SIGCONT) == handler


def test_a_terminal_that_another_program_has_is_left_alone(keyboard: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    before = termios.tcgetattr(keyboard)
    with kept_typing(keyboard):
        termios.tcsetattr(keyboard, termios.TCSANOW, before)
        monkeypatch.setattr(os, "tcgetpgrp", lambda descriptor: os.getpgrp() + 1)
        os.kill(os.getpid(), signal.SIGCONT)
        assert termios.tcgetattr(keyboard) == before
