"""Work that is only worth doing while somebody waits for it. Knows connections; does not know what the work is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

ResultType = TypeVar("ResultType")


class ClientGoneError(Exception):
    """Nobody is there any more to read the answer."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, ResultType]) -> ResultType:
    """The result of ``work``, which is cancelled when the client goes away: then raises ClientGoneError.

    For the time between reading a body and sending an answer: a server hears of a client's end only if it listens.
    """
    doing = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        doing.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
