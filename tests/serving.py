"""A real server in a process of its own, started as a user does, for tests that speak to it over a socket."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]
START_S = 120.0
"""Seconds for a model to load on a busy machine."""
END_S = 60.0
_ANNOUNCED = re.compile(r"^Serving .* at (https?)://([^/]+):(\d+)/v1 ")


class RunningServer:
    """``mistralrs --port 0 ARGUMENTS``; a context manager that serves while it is entered, and then ends."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """``arguments``: options and, after them, the subcommand. Without one it is the model of ``environment``."""
        self._command = [sys.executable, "-m", "mistralrs_cli", "--port", "0", *arguments]
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MISTRALRS_API_KEY")}
        self._environment = {**inherited, "PYTHONPATH": path, "PYTHONUTF8": "1", **(environment or {})}
        self.said: list[str] = []
        """Lines of stderr."""
        self.host, self.port = "127.0.0.1", 0
        self.exit_code: int | None = None
        """The exit code of a server that has ended."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C must reach only the tests
        )
        announced = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(announced,), daemon=True)
        self._listener.start()
        if not announced.wait(START_S) or not self.port:
            self.process.kill()
            self._bury()
            raise RuntimeError("the server did not start:\n" + "".join(self.said))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def root(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """Returns the base URL for clients."""
        return f"{self.root}/v1"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the server and returns the exit code; one that does not end is killed, which is an error."""
        if self.exit_code is None:
            self.process.send_signal(number)
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise RuntimeError("the server did not end:\n" + "".join(self.said)) from None
            finally:
                self.exit_code = self._bury()
        return self.exit_code

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> tuple[int, Any]:
        """Makes one request; returns the status, and the JSON or the text of the answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            data = None if body is None else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def until_quiet(self, seconds: float, *, headers: Mapping[str, str] | None = None) -> bool:
        """Waits until no request is under way; returns False if one still is after ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status, found = self.ask("GET", "/v1/requests", headers=headers)
            if status == 200 and not found["data"]:
                return True
            time.sleep(0.05)
        return False

    def peak_bytes(self) -> int:
        """Returns the peak memory of the process that answers HTTP."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        return int(peak) * 1024

    def _bury(self) -> int:
        code = self.process.wait()
        self._listener.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def _listen(self, announced: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if match := _ANNOUNCED.match(line):
                self.port = int(match[3])
                announced.set()
        announced.set()
