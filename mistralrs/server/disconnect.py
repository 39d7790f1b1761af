"""Work that is cancelled when the client that waits for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

ResultType = TypeVar("ResultType")


class ClientGoneError(Exception):
    """The client left before its answer."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, ResultType]) -> ResultType:
    """Returns the result of ``work``, or cancels it and raises ClientGoneError when the client goes away.

    Serves the time between reading a body and sending an answer: a server notices the end of a connection only while it
    listens.
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
