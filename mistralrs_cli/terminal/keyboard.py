"""Handles the keyboard while no line is edited: typed keys are kept for the next line."""

from __future__ import annotations

import contextlib
import termios
from collections.abc import Callable, Iterator
from typing import TextIO


@contextlib.contextmanager
def kept_typing(stdin: TextIO) -> Iterator[Callable[[], None]]:
    """While entered, typing at a terminal is not echoed into the program's output, and Enter stays Enter.

    Ctrl-C is still a signal. Yields a function that restores the terminal, for exits that cannot wait.
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

    try:
        yield restore
    finally:
        restore()
