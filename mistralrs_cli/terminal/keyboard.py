"""Handles the keyboard while no line is edited: typed keys are kept for the next line."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO


@contextlib.contextmanager
def kept_typing(stdin: TextIO) -> Iterator[Callable[[], None]]:
    """While entered, typing at a terminal is not echoed into the program's output, and Enter stays Enter.

    Ctrl-C is still a signal. After Ctrl-Z and `fg` it is so again, for shells give the terminal back as they have it.
    Yields a function that restores the terminal, for exits that cannot wait.
    """
    keyboard = stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[0] &= ~termios.ICRNL  # or Enter would arrive as Ctrl-J
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # or Ctrl-C would discard the keys typed before it
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)

    def restore() -> None:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, modes)

    def continued(number: int, frame: FrameType | None) -> None:
        if _is_in_front(keyboard) and termios.tcgetattr(keyboard)[3] & termios.ECHO:
            termios.tcsetattr(keyboard, termios.TCSANOW, quiet)

    before = signal.signal(signal.SIGCONT, continued)
    try:
        yield restore
    finally:
        signal.signal(signal.SIGCONT, before)
        restore()


def _is_in_front(keyboard: int) -> bool:
    """Returns whether the terminal may be changed: one that the shell has would stop this process for it."""
    try:
        return os.tcgetpgrp(keyboard) == os.getpgrp()
    except OSError:  # it is not the terminal that the process belongs to
        return True
