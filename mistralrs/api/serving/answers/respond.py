"""Turns an engine's streams into the answer that a client reads, on an event loop: whole, or in chunks.

Several streams become one answer here; ``response_builder`` gives the answer its shape.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, TypeVar

from mistralrs.api.schemas.output_chunk import OutputChunk
from mistralrs.api.serving.answers.choice_state import adapters_replaced, cancelled
from mistralrs.api.serving.answers.response_builder import ResponseBuilder
from mistralrs.api.serving.prepare import Prepared, PreparedEmbeddings
from mistralrs.engine.events import AdaptersChosen, Embedding, Event, Failed, Finished
from mistralrs.errors import MistralrsError

if TYPE_CHECKING:
    from mistralrs.engine.config import Request


class Cancellable(Protocol):
    """A request that was submitted."""

    def cancel(self) -> None: ...


class EventStream(Cancellable, Protocol):
    """The events of a request, for one task at a time; the last is Finished or Failed."""

    def __aiter__(self) -> AsyncIterator[Event]: ...


Submitted_co = TypeVar("Submitted_co", bound=Cancellable, covariant=True)
Submitted = TypeVar("Submitted", bound=Cancellable)


class Submitter(Protocol[Submitted_co]):
    """Takes requests."""

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> Submitted_co: ...


class AnswerError(Exception):
    """An answer that the engine could not finish."""

    def __init__(self, error: MistralrsError, partial: dict[str, object]) -> None:
        super().__init__(error.message)
        self.error = error
        self.partial = partial
        """The answer's body at the time of the error; unfinished choices have the finish reason ``error``."""


def answer_id(prepared: Prepared) -> str:
    """Returns a new id for an answer of this kind."""
    return f"{'chatcmpl' if prepared.kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"


def submit(
    engine: Submitter[Submitted], requests: Sequence[Request], adapters: Mapping[str, float] | None = None
) -> tuple[Submitted, ...]:
    """Submits all requests or none: an error of one of them cancels those before it and is raised. ``adapters``: names
    and weights of those that act on all; None: the default ones."""
    submitted: list[Submitted] = []
    try:
        for request in requests:
            submitted.append(engine.submit(request, adapters=adapters))
    except BaseException:
        for each in submitted:
            each.cancel()
        raise
    return tuple(submitted)


class Answer:
    """The answer to one request, from the streams of its engine requests in their order. The caller reads it in one
    way, once.

    The streams are cancelled when the reader stops or is cancelled while it waits, and when one of them fails.
    """

    def __init__(self, prepared: Prepared, *, id: str, created: int, model_name: str) -> None:
        """``created``: seconds since 1970."""
        self._builder = ResponseBuilder(prepared, id=id, created=created, model_name=model_name)

    async def whole(self, streams: Sequence[EventStream]) -> dict[str, object]:
        """Returns the answer's body. Raises AnswerError when the engine cannot finish one of its choices."""
        async with aclosing(self._checked_events(streams)) as events:
            async for _ in events:
                pass
        return self._builder.snapshot()

    async def events(self, streams: Sequence[EventStream]) -> AsyncGenerator[OutputChunk]:
        """Yields the chunks of all choices as they come; the first comes with the engine's first event.

        Raises AnswerError when the engine cannot finish one of the choices.
        """
        async with aclosing(self._checked_events(streams)) as events:
            async for place, event in events:
                for chunk in self._builder.chunks(place, event):
                    yield chunk
        for chunk in self._builder.last_chunks():
            yield chunk

    def snapshot(self) -> dict[str, object]:
        """Returns the answer's body so far; a stream's reader has the whole one at its end."""
        return self._builder.snapshot()

    async def bodies(self, streams: Sequence[EventStream]) -> AsyncGenerator[dict[str, object]]:
        """Yields the bodies of the chunks of ``events``. Raises as it does."""
        async with aclosing(self.events(streams)) as chunks:
            async for chunk in chunks:
                yield self._builder.chunk_body(chunk)

    async def _checked_events(self, streams: Sequence[EventStream]) -> AsyncGenerator[tuple[int, Event]]:
        """Yields the events of all streams, which the builder has taken. Raises AnswerError at the first error."""
        async with aclosing(_merged(streams)) as events:
            async for place, event in events:
                error = self._builder.on_event(place, event)
                if error is not None:
                    raise AnswerError(error, self._builder.snapshot())
                yield place, event


async def embeddings(
    prepared: PreparedEmbeddings, streams: Sequence[EventStream], *, model_name: str
) -> EmbeddingsAnswer:
    """Returns the whole answer to ``/v1/embeddings``. Raises the engine's error."""
    answer = EmbeddingsAnswer(prepared, model_name=model_name)
    async with aclosing(_merged(streams)) as news:
        async for place, event in news:
            answer.on_event(place, event)
    return answer


class EmbeddingsAnswer:
    """The body of an answer to ``/v1/embeddings``, from the events of its requests."""

    def __init__(self, prepared: PreparedEmbeddings, *, model_name: str) -> None:
        self._prepared = prepared
        self._model_name = model_name
        self._values: dict[int, tuple[float, ...]] = {}
        self._hidden_states: dict[int, bytes] = {}
        self._chosen: AdaptersChosen | None = None

    def on_event(self, place: int, event: Event) -> None:
        """Records an event. Raises the error that ends its request."""
        if isinstance(event, Embedding):
            self._values[place] = event.values
            if event.hidden_states:
                self._hidden_states[place] = event.hidden_states
        elif isinstance(event, AdaptersChosen):
            self._chosen = self._chosen or event
            if event.contents != self._chosen.contents:
                raise adapters_replaced()
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Finished) and event.reason == "cancelled":
            raise cancelled()

    @property
    def hidden_states(self) -> list[bytes]:
        """Returns float32 (tokens, hidden) of each input; an empty list if they were not asked for."""
        return [states for _, states in sorted(self._hidden_states.items())]

    def body(self) -> dict[str, object]:
        """Returns the body, after the last event of every request."""
        encode = _base64 if self._prepared.encoding_format == "base64" else list
        tokens = sum(len(request.prompt) for request in self._prepared.requests)
        acting = {} if self._chosen is None else {"adapter_generation": self._chosen.generation}
        return {
            "object": "list",
            **acting,
            "data": [
                {"object": "embedding", "index": place, "embedding": encode(values)}
                for place, values in sorted(self._values.items())
            ],
            "model": self._model_name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _base64(values: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


async def _merged(streams: Sequence[EventStream]) -> AsyncGenerator[tuple[int, Event]]:
    """Yields all streams' events as they come, with the stream's index; cancels the streams when it is closed."""
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


async def _interleaved(streams: Sequence[EventStream]) -> AsyncGenerator[tuple[int, Event]]:
    # bounded, so that events do not pile up for a client that does not read
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
