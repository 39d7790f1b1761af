"""A server behind a real socket, in a process that a test can end."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from mistralrs.api.served_model import ServedModel
from tests.server.harness import CHAT

PATIENCE_S = 60.0
"""Seconds that a test waits before it fails: the machine may stand still for some."""
SERVING = re.compile(r"Serving (\S+) at (https?)://(\S+):(\d+)/v1 \((.*)\)")


class ServerProcess:
    """Started by ``with``; killed at its end, if it still runs."""

    def __init__(
        self,
        model: ServedModel,
        folder: Path,
        *,
        program: str = "tests.server.fake_server",
        loading: str = "",
        files: int | None = None,
        terminal: int | None = None,
        **settings: Any,
    ) -> None:
        """``program``: the module that runs. ``files``: the number of files that the system lets it open.
        ``terminal``: the terminal that it is started on.
        """
        pickled = folder / "model.pickle"
        pickled.write_bytes(pickle.dumps(model))
        command = [sys.executable, "-m", program, str(pickled), json.dumps(settings), loading]
        if files is not None:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}

        def take_terminal() -> None:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it, as nohup does
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
            preexec_fn=None if terminal is None else take_terminal,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    @property
    def serving(self) -> re.Match[str]:
        """Returns the lines that it writes once it serves."""
        wait_for(lambda: any(SERVING.match(line) for line in self.lines) or self._process.poll() is not None)
        found = next(filter(None, map(SERVING.match, self.lines)), None)
        assert found is not None, self.lines
        return found

    @property
    def port(self) -> int:
        return int(self.serving[4])

    def client(self, **keywords: Any) -> httpx.Client:
        scheme = self.serving[2]
        return httpx.Client(base_url=f"{scheme}://127.0.0.1:{self.port}", timeout=PATIENCE_S, **keywords)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def tell(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Returns the exit code."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join()
        return code

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def metric(self, name: str) -> float:
        with self.client() as client:
            text = client.get("/metrics").text
        return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def question(word: str, **more: Any) -> dict[str, Any]:
    return {"messages": word, **more}


def ask(word: str, *, stream: bool = True, n: int = 1, length: int | None = None, more: str = "") -> bytes:
    """Returns a request as bytes; ``length`` is its claim about its body."""
    body = json.dumps(question(word, stream=stream, n=n)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def receive_all(connection: socket.socket) -> bytes:
    """Returns the bytes that come until the other side closes."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
