"""Where requests are made ready: on threads of its own, few at a time, and only while somebody waits for it.

Knows sizes and waits; does not know what is done to a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mistralrs.errors import RequestError
from mistralrs.text.worker import Cancellation

PREPARING = 2
"""Requests that are prepared at once: templates and tokenizers take a processor, and streams need one too."""
LARGE_BODY = 256 << 10
"""Bytes from which on a body waits for others as large, so that small ones never wait for it."""
MAX_CONTAINERS = 25_000
"""Objects and lists of one body. Reading them holds up everybody else: 0.1 s."""
MAX_VALUES = 600_000
"""Values of one body, such as token ids."""
MAX_STRINGS = 200_000

Result = TypeVar("Result")


class Preparation:
    """For one server."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(PREPARING, thread_name_prefix="prepare")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="prepare-large")

    async def run(self, work: Callable[[], Result], *, size: int) -> Result:
        """The result of ``work``, which is about a body of ``size`` bytes; other requests are served meanwhile.

        Where this is cancelled, work that waits is not done, and the processes that it uses are ended.
        """
        cancellation = Cancellation()

        def entered() -> Result:
            with cancellation.entered():
                cancellation.check()
                return work()

        pool = self._large if size >= LARGE_BODY else self._small
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, entered)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise


def check_shape(data: bytes) -> None:
    """Raises RequestError for a body with so many values that to read it would hold up the server.

    Counts what stands outside of strings, and where a body has many of these, only after that.
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
