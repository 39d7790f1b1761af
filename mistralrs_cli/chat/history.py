"""The file of what was typed, one entry after another, shared by all chats of the user. Knows no editor bindings."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from pathlib import Path

from prompt_toolkit.history import FileHistory


def history_file() -> Path:
    """Where the file belongs; it need not exist."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "mistralrs" / "history"


class PrivateHistory(FileHistory):
    """Entries in prompt_toolkit's file format, appended one by one; only the user may read the file.

    An entry that begins with a space is kept in memory alone. When the file cannot be written, ``complain`` is told
    once and the chat goes on without it.
    """

    def __init__(self, path: Path, *, complain: Callable[[str], None]) -> None:
        super().__init__(str(path))
        self._path = path
        self._complain = complain
        self._writable = True

    def store_string(self, string: str) -> None:
        """Append an entry, in one write, so that two chats cannot mix theirs."""
        if string.startswith(" ") or not self._writable:
            return
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        entry = f"\n# {datetime.datetime.now()}\n{lines}".encode(errors="replace")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, entry)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._writable = False
            self._complain(f"the history is not kept: {error}")
