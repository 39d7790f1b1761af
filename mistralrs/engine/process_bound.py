"""Objects bound to the process that made them, because a fork or a pickle does not have their threads."""

from __future__ import annotations

import os
from typing import NoReturn

from mistralrs.errors import EngineError

HINT = "make a Runner in each process that needs one, after the fork"


class ProcessBound:
    """An object that works only in the process that made it, and that cannot be copied or pickled."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def _is_forked(self) -> bool:
        """Whether this process is a fork of the one that made it. Its threads are missing here, so that waiting for it
        would never end."""
        return os.getpid() != self._process

    def _forked_error(self) -> EngineError:
        """The error for use in another process."""
        return EngineError(
            f"this {type(self).__name__} belongs to process {self._process}; this is process {os.getpid()}",
            hint=HINT,
        )

    def _require_process(self) -> None:
        """Raises EngineError in a process other than the one that made it."""
        if self._is_forked:
            raise self._forked_error()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raises TypeError, as Python's own threads, locks and sockets do when they are copied or pickled."""
        name = type(self).__name__
        raise TypeError(f"a {name} cannot be copied, pickled or sent to another process: {HINT}")
