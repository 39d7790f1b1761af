"""The keyboard while no line is edited: what is typed is kept for the next line. Knows terminal modes and no editor."""

from __future__ import annotations

import contextlib
import termios
from collections.abc import Callable, Iterator
from typing import TextIO


@contextlib.contextmanager
def kept_typing(stdin: TextIO) -> Iterator[Callable[[], None]]:
    """While entered, typing at a terminal is not echoed into what the program writes, and Enter stays Enter.

    Ctrl-C is a signal, as ever. Gives the function that makes the terminal as it was, for those who leave in a hurry.
    """
    keyboard = stdin.fileno()
    modes = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[0] &= ~termios.ICRNL  # or Enter would arrive as Ctrl-J
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # or Ctrl-C would throw away what was typed before it
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)

    def restore() -> None:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, modes)

    try:
        yield restore
    finally:
        restore()
