"""Reads the text that is piped into a chat, which then takes the keyboard."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from mistralrs_cli.terminal.output import Streams, is_terminal
from mistralrs_cli.terminal.stdin_text import holds_text, read_all, warn_of_waiting

KEYBOARD = "/dev/tty"


def take_piped_context(streams: Streams) -> tuple[Streams, str | None]:
    """Returns the streams with the keyboard as stdin, and the text that was piped in.

    Only where stdout is a terminal, and the process has one to read from; otherwise the streams are as they were, and
    there is no text: each line of the pipe is a turn. Raises as ``read_all`` does.
    """
    if not is_terminal(streams.stdout) or not holds_text(streams.stdin):
        return streams, None
    try:
        keyboard = os.open(KEYBOARD, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return streams, None
    try:
        warn_of_waiting(streams.stdin, hint="Ctrl-C leaves")
        text = read_all(streams.stdin)
        os.dup2(keyboard, 0)
    finally:
        os.close(keyboard)
    sys.stdin = open(0, encoding=streams.stdin.encoding, errors="replace", closefd=False)  # noqa: SIM115
    return replace(streams, stdin=sys.stdin), text if text.strip() else None
