"""The exit codes that belong to no error, and the ways in which signals end the command.

0 is success; errors have the codes 1 to 4 themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STOPPED_BY_LENGTH = 5
"""An answer was stopped by its limit, and ``--fail-on-length`` asks for it."""
INTERRUPTED = 130
"""Ctrl-C."""
CLOSED_OUTPUT = 141
"""stdout was closed by its reader."""
HUNG_UP = 129
"""SIGHUP: the terminal is gone."""
TERMINATED = 143
"""SIGTERM."""


class Terminated(SystemExit):
    """SIGTERM arrived. It is a ``SystemExit``, because event loops do not catch that one."""


class HungUp(Terminated):
    """SIGHUP arrived."""


def raise_hung_up(number: int, frame: FrameType | None) -> NoReturn:
    """Handles SIGHUP while a chat runs."""
    raise HungUp


def raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Handles SIGTERM while a job runs."""
    raise Terminated


@contextlib.contextmanager
def leaving_at_once(*before: Callable[[], None]) -> Iterator[None]:
    """While entered, Ctrl-C and SIGTERM end the process at once, after ``before`` has been done.

    It is for imports and loading: an exception in the midst of them can get lost, and there is nothing to save.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        with contextlib.ExitStack() as stack:  # one that fails keeps no other from being done
            stack.callback(os._exit, INTERRUPTED if number == signal.SIGINT else TERMINATED)
            for action in reversed(before):
                stack.callback(action)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
