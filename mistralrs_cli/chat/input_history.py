"""The file of typed entries, one after another, shared by all chats of the user."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import FileHistory

from mistralrs.user_dirs import user_folder


def history_file() -> Path | None:
    """Returns the file's path; it need not exist. None: the user has no home folder."""
    folder = user_folder("XDG_STATE_HOME", ".local/state")
    return None if folder is None else folder / "history"


class PrivateHistory(FileHistory):
    """Entries in prompt_toolkit's file format, appended one by one; only the user may read the file.

    An entry that begins with a space is kept in memory alone. When the file cannot be read or written, ``complain`` is
    called once and the chat goes on without it. ``path``: None is no file.
    """

    def __init__(self, path: Path | None, *, complain: Callable[[str], None], keeps: bool = True) -> None:
        """``keeps``: False reads the file and writes nothing."""
        super().__init__(os.devnull if path is None else str(path))
        self._path = path
        self._complain = complain
        self._writable = keeps

    def load_history_strings(self) -> Iterable[str]:
        """Yields the entries, the youngest first; none of a file that cannot be read, which is not written either."""
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._give_up(str(error))
            return []

    def store_string(self, string: str) -> None:
        """Appends an entry in one write, so that the entries of two chats cannot mix."""
        if string.startswith(" ") or not self._writable:
            return
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        if self._path is None:
            self._give_up("there is no home folder; XDG_STATE_HOME names another one")
            return
        entry = f"\n# {datetime.datetime.now()}\n{lines}".encode(errors="replace")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, entry)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        self._writable = False
        self._complain(f"the history is not kept: {reason}")
