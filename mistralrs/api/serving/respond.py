"""From an engine's streams to the answer that a client reads, on an event loop: whole, or as server-sent events.

Knows how several streams become one answer; its shape is ``composer``'s. Does not know how requests came about, nor
HTTP: how an error reads is told to it.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, TypeVar

from mistralrs.api.serving.choice_state import cancelled
from mistralrs.api.serving.chunks import DONE, error_event
from mistralrs.api.serving.prepare import Prepared, PreparedEmbeddings
from mistralrs.api.serving.response_builder import ResponseBuilder
from mistralrs.engine.events import Embedding, Event, Failed, Finished
from mistralrs.errors import MistralrsError

if TYPE_CHECKING:
    from mistralrs.api.engine_client.engine_client import AsyncStream
    from mistralrs.engine.config import Request


class Cancellable(Protocol):
    """What was submitted."""

    def cancel(self) -> None: ...


Submitted_co = TypeVar("Submitted_co", bound=Cancellable, covariant=True)
Submitted = TypeVar("Submitted", bound=Cancellable)


class Submitter(Protocol[Submitted_co]):
    """What takes requests."""

    def submit(self, request: Request) -> Submitted_co: ...


class AnswerError(Exception):
    """An answer that the engine could not finish."""

    def __init__(self, error: MistralrsError, partial: dict[str, object]) -> None:
        super().__init__(error.message)
        self.error = error
        self.partial = partial
        """What there is of the answer; unfinished choices have the finish reason ``error``."""


def answer_id(prepared: Prepared) -> str:
    """A new id of the kind that its answer has."""
    return f"{'chatcmpl' if prepared.kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"


def submit(engine: Submitter[Submitted], requests: Sequence[Request]) -> tuple[Submitted, ...]:
    """Submits all requests or none: what one of them raises cancels those before it."""
    submitted: list[Submitted] = []
    try:
        for request in requests:
            submitted.append(engine.submit(request))
    except BaseException:
        for each in submitted:
            each.cancel()
        raise
    return tuple(submitted)


class Answer:
    """The answer to one request, from the streams of its requests in their order. To be asked for once.

    Whoever stops listening, or is cancelled while it waits, cancels the streams; so does the failure of one of them.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        id: str,
        created: int,
        model_name: str,
        error_body: Callable[[MistralrsError], Mapping[str, object]],
    ) -> None:
        """``created``: seconds since 1970. ``error_body``: ``{"error": {...}}`` of what ends a stream early."""
        self._builder = ResponseBuilder(prepared, id=id, created=created, model_name=model_name)
        self._error_body = error_body

    async def whole(self, streams: Sequence[AsyncStream]) -> dict[str, object]:
        """The body of the answer. Raises AnswerError when the engine cannot finish one of its choices."""
        composer = self._builder
        async with aclosing(_merged(streams)) as news:
            async for place, event in news:
                error = composer.on_event(place, event)
                if error is not None:
                    raise AnswerError(error, composer.snapshot())
        return composer.snapshot()

    async def events(self, streams: Sequence[AsyncStream]) -> AsyncGenerator[bytes]:
        """Server-sent events: the chunks of all choices as they come, then ``[DONE]``; or an error, which is the last.

        The first comes with the first news from the engine.
        """
        composer = self._builder
        async with aclosing(_merged(streams)) as news:
            async for place, event in news:
                error = composer.on_event(place, event)
                if error is not None:
                    yield error_event(self._error_body(error))
                    return
                for chunk in composer.chunks(place, event):
                    yield chunk
        for chunk in composer.last_chunks():
            yield chunk
        yield DONE


async def embeddings(
    prepared: PreparedEmbeddings, streams: Sequence[AsyncStream], *, model_name: str
) -> dict[str, object]:
    """The body of an answer to ``/v1/embeddings``. Raises what the engine failed with."""
    values: dict[int, tuple[float, ...]] = {}
    async with aclosing(_merged(streams)) as news:
        async for place, event in news:
            if isinstance(event, Embedding):
                values[place] = event.values
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Finished) and event.reason == "cancelled":
                raise cancelled()
    encode = _base64 if prepared.encoding_format == "base64" else list
    tokens = sum(len(request.prompt) for request in prepared.requests)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": place, "embedding": encode(values[place])} for place in range(len(streams))
        ],
        "model": model_name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


async def _merged(streams: Sequence[AsyncStream]) -> AsyncGenerator[tuple[int, Event]]:
    """All streams' events as they come, with the place of the stream; when it is closed, the streams are cancelled."""
    try:
        if len(streams) == 1:
            async for event in streams[0]:
                yield 0, event
            return
        async with aclosing(_interleaved(streams)) as events:
            async for place, event in events:
                yield place, event
    finally:
        for stream in streams:
            stream.cancel()


async def _interleaved(streams: Sequence[AsyncStream]) -> AsyncGenerator[tuple[int, Event]]:
    # bounded: a client that does not read shall not make the events pile up here
    queue: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(len(streams))

    async def pump(place: int) -> None:
        try:
            async for event in streams[place]:
                await queue.put((place, event))
        except Exception as error:
            await queue.put((place, error))
        else:
            await queue.put((place, None))

    pumps = [asyncio.create_task(pump(place)) for place in range(len(streams))]
    try:
        num_open = len(pumps)
        while num_open:
            place, event = await queue.get()
            if event is None:
                num_open -= 1
            elif isinstance(event, Exception):
                raise event
            else:
                yield place, event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
