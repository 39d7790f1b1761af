"""Many streams at once against an OpenAI-compatible server, by a client that needs little processor time.

One connection a request, hand-read chunked bodies: the client shares its cores with the server that it measures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from random import Random

_COMMON = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one"
    " you were all her she there would their we him been has when who will no more if out so up said what its about"
)
WORDS = _COMMON.split()
SHORTEST, LONGEST = 10, 1500
"""Words of a prompt; about as many tokens."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: greedy, streamed."""

    prompt: str
    max_tokens: int
    hang_up_after: int | None = None
    """Pieces of text after which the client closes the connection; None: it reads to the end."""


@dataclass(slots=True)
class Heard:
    """The result of a request. Seconds are since the request was sent."""

    text: str = ""
    pieces: list[float] = field(default_factory=list)
    """The arrival times of pieces of text."""
    tokens: int = 0
    """Completion tokens, as the server counts them; pieces of text if it does not say."""
    seconds: float = 0.0
    ended: bool = False
    """The stream came to its end."""
    error: str = ""


def workload(seed: int, *, max_tokens: int, hang_up_every: int = 0) -> Iterator[Ask]:
    """Yields requests without end: prompt lengths spread evenly on a logarithmic scale; one in so many leaves early."""
    random = Random(seed)
    for number in itertools.count(1):
        words = round(SHORTEST * (LONGEST / SHORTEST) ** random.random())
        prompt = " ".join(random.choice(WORDS) for _ in range(words))
        leaves = hang_up_every and number % hang_up_every == 0
        # zero pieces: the client leaves while the prompt is still computed
        yield Ask(prompt, max_tokens, random.randrange(max_tokens // 2) if leaves else None)


async def ask(host: str, port: int, request: Ask, *, model: str = "default") -> Heard:
    """Sends one completion request and reads its stream. Failures are in ``error`` instead of raised."""
    heard, started = Heard(), time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    except OSError as error:
        heard.error = f"no connection: {error}"
        return heard
    try:
        writer.write(_message(host, request, model))
        if request.hang_up_after == 0:
            await asyncio.sleep(0.05)
            return heard
        status, is_chunked = await _head(reader)
        body = _chunks(reader) if is_chunked else _rest(reader)
        await _listen(body, request, heard, started, status)
    except (OSError, EOFError, ValueError) as error:
        heard.error = heard.error or f"{type(error).__name__}: {error}"
    finally:
        heard.seconds = time.perf_counter() - started
        writer.close()
    return heard


async def run_streams(
    host: str, port: int, requests: Iterator[Ask], *, streams: int, count: int | None = None, seconds: float = 1e9
) -> list[tuple[Ask, Heard]]:
    """Keeps ``streams`` requests open until ``count`` were sent or ``seconds`` passed; waits for those under way."""
    results: list[tuple[Ask, Heard]] = []
    ends = time.perf_counter() + seconds
    left = iter(range(count)) if count is not None else iter(int, 1)

    async def stream() -> None:
        while time.perf_counter() < ends and next(left, None) is not None:
            request = next(requests)
            results.append((request, await ask(host, port, request)))

    await asyncio.gather(*(stream() for _ in range(streams)))
    return results


def _message(host: str, request: Ask, model: str) -> bytes:
    body = json.dumps(
        {
            "model": model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    status = int((await reader.readline()).split()[1])
    is_chunked = False
    while (line := await reader.readline()).strip():
        is_chunked |= line.lower().startswith(b"transfer-encoding: chunked")
    return status, is_chunked


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    yield await reader.read()


async def _listen(body: AsyncIterator[bytes], request: Ask, heard: Heard, started: float, status: int) -> None:
    pending = b""
    async for data in body:
        pending += data
        *lines, pending = pending.split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                _hear(line[6:].strip(), heard, started)
        if request.hang_up_after is not None and len(heard.pieces) >= request.hang_up_after:
            return
    if status != 200:
        heard.error = f"{status}: {pending.decode(errors='replace')}"
    elif not heard.ended and not heard.error:
        heard.error = "the stream broke off"
    heard.tokens = heard.tokens or len(heard.pieces)


def _hear(data: bytes, heard: Heard, started: float) -> None:
    if data == b"[DONE]":
        heard.ended = True
        return
    event = json.loads(data)
    if "error" in event:
        heard.error = str(event["error"])
        return
    for choice in event["choices"]:
        if choice["text"]:
            heard.text += choice["text"]
            heard.pieces.append(time.perf_counter() - started)
    if event.get("usage"):
        heard.tokens = event["usage"]["completion_tokens"]
