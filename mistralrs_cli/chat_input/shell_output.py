"""Runs a command of the shell and keeps its output."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass

OUTPUT_BYTES = 4 << 20
"""Output that is kept; a command that writes more is ended."""


@dataclass(frozen=True, slots=True)
class ShellOutput:
    """The output of a command, errors included."""

    text: str
    end: str
    """How it ended: empty for success."""


def run_command(command: str) -> ShellOutput:
    """Runs a command without input and returns its output; Ctrl-C ends the command."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    data, end = bytearray(), ""
    try:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            data += piece
            if len(data) > OUTPUT_BYTES:
                end = f"ended after {OUTPUT_BYTES >> 20} MB of output"
                break
        code = process.wait() if not end else 0
        end = end or (f"exit code {code}" if code > 0 else f"ended by signal {-code}" if code else "")
    except KeyboardInterrupt:
        end = "stopped"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also those that it left behind
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        signal.signal(signal.SIGINT, previous)
    return ShellOutput(data[:OUTPUT_BYTES].decode(errors="replace"), end)
