"""The exit codes that no error carries, and the ways in which signals end the command.

0 is success, errors bring 1 to 4 themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Ctrl-C."""
CLOSED_OUTPUT = 141
"""Nobody reads stdout any more."""
TERMINATED = 143
"""SIGTERM."""


class Terminated(SystemExit):
    """SIGTERM arrived. A ``SystemExit``, because event loops let that one through."""


def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Handles SIGTERM while a job runs."""
    raise Terminated


@contextlib.contextmanager
def leaving_at_once(*before: Callable[[], None]) -> Iterator[None]:
    """While entered, Ctrl-C and SIGTERM end the process at once, after ``before`` has been done.

    Serves imports and loading: an exception raised in the midst of them can get lost, and there is nothing to save.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        try:
            for action in before:
                action()
        finally:
            os._exit(INTERRUPTED if number == signal.SIGINT else TERMINATED)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
