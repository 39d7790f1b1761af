"""The threads that prepare requests: few at a time, and only while the client waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mistralrs.errors import RequestError
from mistralrs.text.worker import Cancellation

PREPARING = 2
"""Requests that are prepared at once: templates and tokenizers take a processor, and streams need one too."""
COMPILING = 2
"""Requests with a new grammar that are prepared at once: one may take seconds, and the others do not wait for it."""
MAX_COMPILING = 128
"""Requests with a new grammar that are prepared or wait for it, at most: each of them may take two seconds."""
LARGE_BODY = 256 << 10
"""Bytes from which on a body waits for others as large, so that small ones never wait for it."""
MAX_CONTAINERS = 25_000
"""Objects and lists of one body. Reading so many holds up all other requests: 0.1 s."""
MAX_VALUES = 600_000
"""Values of one body, such as token ids."""
MAX_STRINGS = 200_000

Result = TypeVar("Result")


class Preparation:
    """The threads of one server."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="prepare-large")
        self._grammars = ThreadPoolExecutor(COMPILING, thread_name_prefix="prepare-grammar")
        self._num_grammars = 0

    async def run(self, work: Callable[[], Result], *, size: int) -> Result:
        """Returns the result of ``work``, which is about a body of ``size`` bytes; other requests are served meanwhile.

        Cancelling this call drops work that has not begun, and ends the processes that it uses.
        """
        return await _run_in(self._large if size >= LARGE_BODY else self._small, work)

    async def run_with_grammar(self, work: Callable[[], Result]) -> Result:
        """Returns what ``run`` would for work that checks a new grammar; only others of this kind wait for it.

        Raises RequestError where as many wait as may.
        """
        if self._num_grammars >= MAX_COMPILING:
            message = f"{MAX_COMPILING} requests with new grammars are waiting, which is as many as may"
            raise RequestError(message, hint="try again later", code="queue_full")
        self._num_grammars += 1
        try:
            return await _run_in(self._grammars, work)
        finally:
            self._num_grammars -= 1


async def _run_in(pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
    cancellation = Cancellation()

    def entered() -> Result:
        with cancellation.entered():
            cancellation.check()
            return work()

    try:
        return await asyncio.get_running_loop().run_in_executor(pool, entered)
    except asyncio.CancelledError:
        cancellation.cancel()
        raise


def check_shape(data: bytes) -> None:
    """Raises RequestError for a body with so many values that reading it would hold up the server.

    Counts everything first, and only if that is too much leaves out the inside of strings.
    """
    if data.count(b"{") + data.count(b"[") <= MAX_CONTAINERS and data.count(b",") <= MAX_VALUES:
        return
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * MAX_STRINGS:
        raise _too_many(MAX_STRINGS, "strings")
    outside = b"".join(plain.split(b'"')[::2])
    if outside.count(b"{") + outside.count(b"[") > MAX_CONTAINERS:
        raise _too_many(MAX_CONTAINERS, "objects and lists")
    if outside.count(b",") > MAX_VALUES:
        raise _too_many(MAX_VALUES, "values")


def _too_many(most: int, things: str) -> RequestError:
    return RequestError(f"the body holds more than {most} {things}", hint="send less at once")
