"""`mistralrs` as a command of a shell, each call in a fork of one process that has imported the program already.

A call takes a tenth of a second less than a new process; streams, folder, environment and exit code are those of one.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from tests.cli.forked_commands import IMPORTED

_CLIENT = """
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
words = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(words).to_bytes(4, "big")], [0, 1, 2])
link.sendall(words)
code = link.recv(1)
sys.exit(code[0] if code else 120)
"""


class ShellCommands:
    """Runs scripts of bash in which ``mistralrs`` is the command; a context manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """``environment``: that of the scripts; its ``PYTHONPATH`` has the program."""
        self._environment = dict(environment)

    def __enter__(self) -> Self:
        self._folder = TemporaryDirectory()
        self._path = str(Path(self._folder.name, "socket"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.examples.shell_commands", self._path],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that the commands can be ended with it
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._folder.cleanup()

    def run(self, script: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], list[int]]:
        """Returns the end of a script that stops at the first error, and the exit code of each ``mistralrs`` in it."""
        codes = Path(self._folder.name, "codes")
        codes.write_text("")
        call = shlex.join([sys.executable, "-I", "-S", "-c", _CLIENT, self._path])
        noted = f"echo $code >> {shlex.quote(str(codes))}; return $code"
        function = f'mistralrs() {{ local code=0; {call} "$@" || code=$?; {noted}; }}'
        done = subprocess.run(
            ["bash", "-ec", f"{function}\nexport -f mistralrs\n{script}"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done, [int(code) for code in codes.read_text().split()]


def serve(path: str) -> None:
    """Listens at a socket, and runs each command that arrives in a fork."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            link, _ = listener.accept()
            if not os.fork():
                listener.close()
                code = 120
                try:
                    code = _run(link)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                link.send(bytes([code]))
                os._exit(code)
            link.close()


def _run(link: socket.socket) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(link, 4, 3)
    with link.makefile("rb") as rest:
        words, folder, environment = json.loads(rest.read(int.from_bytes(length, "big")))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate(("r", "w", "w"))
    )
    sys.argv = ["mistralrs", *words]
    from mistralrs_cli.start import start

    code = start()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
