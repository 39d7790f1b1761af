"""A terminal with a screen: a program on a pty (pexpect), and pyte, which draws its output and answers its queries."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import termios
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pexpect
import pyte

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds to wait for expected output; tests take far less unless the machine is busy."""

_METER = re.compile(r"^(>.*?) {2,}(?:Fake-1B|tiny|first)(?: · context \d+ %)?$")
ENTER = "\r"
CTRL_C = "\x03"
CTRL_D = "\x04"
CTRL_J = "\n"
ALT_ENTER = "\x1b\r"
UP = "\x1b[A"
PASTE_BEGIN, PASTE_END = "\x1b[200~", "\x1b[201~"


def environment(home: Path, **extra: str) -> dict[str, str]:
    """A user without settings, whose files are under ``home`` and whose default model is an empty file there."""
    model = home / "default.gguf"
    model.touch()
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    paths = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
    return {
        **kept,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "MISTRALRS_DEFAULT_MODEL": str(model),
        "PYTHONPATH": paths,
        "PYTHONUTF8": "1",
        "TERM": "xterm-256color",
        **extra,
    }


def send_all(child: pexpect.spawn[bytes], text: str) -> None:
    """Sends a text as a whole: a process that is stopped and goes on writes only a part at once."""
    data = text.encode()
    while data:
        data = data[child.send(data) :]


def end(child: pexpect.spawn[bytes]) -> None:
    """Ends a program and waits for that: pexpect waits for a tenth of a second after SIGKILL."""
    try:
        child.close(force=True)
    except pexpect.ExceptionPexpect:
        child.kill(signal.SIGKILL)
        child.wait()


class _Screen(pyte.Screen):
    """Answers queries such as that of the cursor's position."""

    child: pexpect.spawn[bytes] | None = None

    def write_process_input(self, data: str) -> None:
        if self.child is not None:
            self.child.send(data)


class Terminal:
    """The fake model's ``mistralrs`` on a terminal of ``columns`` x ``lines``; ``redirection`` is the shell's."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        *,
        redirection: str = "",
        columns: int = 100,
        lines: int = 40,
    ) -> None:
        self._screen = _Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        """Everything that the program wrote."""
        command = shlex.join([sys.executable, "-m", "tests.cli.fake_main", *arguments])
        self.child = pexpect.spawn(
            "/bin/sh",
            ["-c", f"exec {command} {redirection}"],
            env=dict(environment),
            cwd=str(ROOT),
            dimensions=(lines, columns),
            timeout=PATIENCE,
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # nohup around the tests ignores it
        )
        self.child.delaybeforesend = None
        self._screen.child = self.child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self.child)

    def send(self, *keys: str) -> None:
        """Presses keys."""
        for key in keys:
            send_all(self.child, key)

    def send_until_the_end(self, key: str, *, answer: str) -> None:
        """Presses a key until the program ends, again whenever it shows ``answer``: a key that counts within a second
        may have come too late for that."""
        end = time.monotonic() + PATIENCE
        while True:
            shown = self.raw.count(answer.encode())
            self.send(key)
            while self.raw.count(answer.encode()) == shown:
                assert time.monotonic() < end, "the program does not end; the screen:\n" + "\n".join(self.lines())
                if not self._pump():
                    return

    def lines(self) -> list[str]:
        """Returns the screen's text, without empty lines at its end and without the meter of the line."""
        return [_METER.sub(r"\1", line) for line in self.lines_with_meter()]

    def lines_with_meter(self) -> list[str]:
        """Returns the screen's text, without empty lines at its end."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def wait_for(self, text: str) -> list[str]:
        """Returns the screen once it shows ``text``."""
        return self._wait(lambda lines: any(text in line for line in lines), f"{text!r} on the screen")

    def wait_for_line(self, line: str, *, times: int = 1) -> list[str]:
        """Returns the screen once ``line`` is on it ``times`` times, alone on its line."""
        return self._wait(lambda lines: lines.count(line) >= times, f"the line {line!r} {times} times")

    def wait_below(self, line: str, text: str) -> list[str]:
        """Returns the screen once it shows ``text`` in a line below the last that is ``line``."""
        return self._wait(
            lambda lines: line in lines and text in " ".join(lines[len(lines) - lines[::-1].index(line) :]),
            f"{text!r} below {line!r}",
        )

    def resize(self, lines: int, columns: int) -> None:
        """Gives the screen another size, and the program's terminal with it."""
        self._screen.resize(lines, columns)
        self.child.setwinsize(lines, columns)

    def wait_for_prompt(self) -> list[str]:
        """Returns the screen once its last line is an empty prompt."""
        return self._wait(lambda lines: lines[-1] == ">", "an empty prompt")

    def exit_code(self) -> int:
        """Waits for the program to end; returns its exit code, or minus the number of the signal that ended it."""
        end = time.monotonic() + PATIENCE
        while self._pump():
            assert time.monotonic() < end, "the program does not end; the screen:\n" + "\n".join(self.lines())
        self.child.wait()
        code: int = -self.child.signalstatus if self.child.exitstatus is None else self.child.exitstatus
        return code

    def echoes(self) -> bool:
        """Returns whether the terminal shows typed keys, as a shell expects it."""
        return bool(termios.tcgetattr(self.child.child_fd)[3] & termios.ECHO)

    def _wait(self, condition: Callable[[list[str]], bool], what: str) -> list[str]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            lines = self.lines()
            if condition(lines):
                return lines
            if not self._pump():
                break
        raise AssertionError(f"waited for {what}; the screen:\n" + "\n".join(self.lines()))

    def _pump(self) -> bool:
        """Draws new output; returns False when the program has ended."""
        try:
            data = self.child.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True
