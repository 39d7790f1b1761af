"""Streams of events as ASGI messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Message

from mistralrs.server.responses import EventStream


def test_a_connection_can_be_lost_between_two_pieces() -> None:
    """Holds even when all of them are ready: work that a failed write started comes before the next write."""
    order: list[str] = []

    async def ready() -> AsyncGenerator[bytes]:
        for _ in range(5):
            yield b"data: 1\n\n"

    async def send(message: Message) -> None:
        if message.get("body"):
            order.append("written")
            asyncio.get_running_loop().call_soon(order.append, "noticed")

    stream = EventStream(ready(), headers={}, keep_alive_s=60.0, close=lambda: None)
    asyncio.run(stream.stream_response(send))
    assert order == ["written", "noticed"] * 5
