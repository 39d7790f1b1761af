"""Objects that live in the process that made them: their threads do not come along into a fork, nor into a pickle."""

from __future__ import annotations

import os
from typing import NoReturn

from mistralrs.errors import EngineError

HINT = "make a Runner in each process that needs one, after the fork"


class ProcessBound:
    """Knows which process it was made in. It is neither copied nor pickled."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def is_forked(self) -> bool:
        """This process is a fork of the one that made it, and has a copy without threads: whoever waited for it would
        wait for ever."""
        return os.getpid() != self._process

    def forked_error(self) -> EngineError:
        """What to say to those who use it elsewhere."""
        return EngineError(
            f"this {type(self).__name__} belongs to process {self._process}; this is process {os.getpid()}",
            hint=HINT,
        )

    def require_process(self) -> None:
        """Raises EngineError in any process but its own."""
        if self.is_forked:
            raise self.forked_error()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raises TypeError, as Python's own threads, locks and sockets do when they are copied or pickled."""
        name = type(self).__name__
        raise TypeError(f"a {name} cannot be copied, pickled or sent to another process: {HINT}")
