"""The server's end of an engine's process: starts it, carries messages both ways, and waits for its end.

Handles the messages' frames, not their meanings.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import cast

from mistralrs.api.engine_client.engine_messages import FrameDecoder, frame
from mistralrs.errors import LoadError
from mistralrs.process import has_working_folder, open_standard_descriptors

CHILD = "mistralrs.api.engine_client.engine_server"
"""The module that the process runs."""
CLOSING_S = 10.0
"""Seconds that a process may take to end after either side has closed the connection, before it is killed; it needs one
step."""


class EngineLink(asyncio.Protocol):
    """A process and the socket to it, used on one event loop."""

    def __init__(
        self, process: subprocess.Popen[bytes], receive: Callable[[object], None], lose: Callable[[], None]
    ) -> None:
        """Called only by ``open``."""
        self._process = process
        self._receive = receive
        self._lose = lose
        self._decoder = FrameDecoder()
        self._transport: asyncio.WriteTransport

    @classmethod
    async def open(cls, receive: Callable[[object], None], lose: Callable[[], None]) -> EngineLink:
        """Starts the process. ``receive`` is called with each message, ``lose`` once the process has hung up.

        On Linux the process does not outlive the thread that calls this. Raises LoadError.
        """
        process, connection = _start_process()
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(lambda: cls(process, receive, lose), sock=connection)
        return link

    def send(self, message: object) -> None:
        """Sends a message without waiting. The connection must be open."""
        self._transport.write(frame(message))

    def hang_up(self) -> None:
        """Closes this side's output; the process then answers what it can, and ends."""
        self._transport.write_eof()

    def kill(self) -> None:
        """Kills the process at once."""
        self._process.kill()

    async def exit_code(self) -> int:
        """Returns the exit code, as ``subprocess`` has it, of a process that has hung up; kills one that lingers."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + CLOSING_S
        while (code := self._process.poll()) is None:
            await asyncio.sleep(0.005)
            if loop.time() > patience:
                self.kill()
        return code

    # Called by the event loop:

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio when the socket is connected."""
        # another event loop, such as uvloop, has a transport of its own class with the same methods
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with bytes of messages, which need not be whole."""
        for message in self._decoder.feed(data):
            self._receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio when the process has closed the connection."""
        self._lose()


def _start_process() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Returns the process and this end of the socket to it.

    The process is a fresh interpreter, because a fork would inherit the state of threads that it does not have.
    """
    open_standard_descriptors()  # the child would take a socket of that number for its stdout or stderr
    here, there = socket.socketpair()
    command = [sys.executable, "-P", "-m", CHILD, str(there.fileno())]
    path = os.pathsep.join(_import_path())
    with there:
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError as error:
            here.close()
            raise LoadError(f"the engine's process cannot be started: {error}") from error
    return process, here


def _import_path() -> list[str]:
    """Returns the folders that this process imports from, all absolute.

    Relative ones are left out where the working directory does not exist any more: they hold nothing, and an
    interpreter would not start with them.
    """
    if has_working_folder():
        return [os.path.abspath(entry) for entry in sys.path]
    return [entry for entry in sys.path if os.path.isabs(entry)]
