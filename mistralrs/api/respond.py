"""From an engine's events to the answer that a client reads: whole, or as server-sent events.

Knows shapes, indices and sums; does not know how requests came about, nor HTTP: how an error reads is told to it.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from mistralrs.api.candidate import Candidate, cancelled, timings, usage
from mistralrs.api.chunks import CHAT, COMPLETION, DONE, SYSTEM_FINGERPRINT, ChunkWriter, error_event
from mistralrs.api.logprobs import CompletionLogprobs, Echo, chat_logprobs
from mistralrs.api.prepare import Prepared, PreparedEmbeddings
from mistralrs.engine.events import Delta, Embedding, Event, Failed, Finished, PromptLogprobs
from mistralrs.errors import MistralrsError

if TYPE_CHECKING:
    from mistralrs.api.engine_client import AsyncStream, EngineClient
    from mistralrs.engine.config import Request


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


def submit(engine: EngineClient, requests: Sequence[Request]) -> tuple[AsyncStream, ...]:
    """Submits all requests or none: what one of them raises cancels those before it."""
    streams: list[AsyncStream] = []
    try:
        for request in requests:
            streams.append(engine.submit(request))
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return tuple(streams)


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
        self._prepared = prepared
        self._id = id
        self._created = created
        self._model_name = model_name
        self._error_body = error_body
        self._writer = ChunkWriter(
            CHAT if prepared.kind == "chat" else COMPLETION,
            id=id,
            created=created,
            model=model_name,
            include_usage=prepared.include_usage,
        )
        self._candidates = [Candidate(request) for request in prepared.requests]
        self._offsets = [CompletionLogprobs(self._echo(place)) for place in range(len(self._candidates))]
        self._opened = False

    async def whole(self, streams: Sequence[AsyncStream]) -> dict[str, object]:
        """The body of the answer. Raises AnswerError when the engine cannot finish one of its choices."""
        async with aclosing(_merged(streams)) as news:
            async for place, event in news:
                error = self._candidates[place].hear(event)
                if error is not None:
                    raise AnswerError(error, self.so_far())
        return self.so_far()

    async def events(self, streams: Sequence[AsyncStream]) -> AsyncGenerator[bytes]:
        """Server-sent events: the chunks of all choices as they come, then ``[DONE]``; or an error, which is the last.

        The first comes with the first news from the engine.
        """
        async with aclosing(_merged(streams)) as news:
            async for place, event in news:
                error = self._candidates[place].hear(event)
                if error is not None:
                    yield error_event(self._error_body(error))
                    return
                for chunk in self._chunks(place, event):
                    yield chunk
        if self._prepared.include_usage:
            yield self._writer.usage(self._usage())
        yield DONE

    def so_far(self) -> dict[str, object]:
        """The body of an answer with what has come; unfinished choices have the finish reason ``error``."""
        prepared = self._prepared
        choices: list[dict[str, object]] = []
        for first in range(0, len(self._candidates), prepared.candidates):
            for place in self._best(range(first, first + prepared.candidates)):
                choices.append(self._choice(len(choices), place))
        return {
            "id": self._id,
            "object": "chat.completion" if prepared.kind == "chat" else "text_completion",
            "created": self._created,
            "model": self._model_name,
            "system_fingerprint": SYSTEM_FINGERPRINT,
            "choices": choices,
            "usage": self._usage(),
            "timings": timings(self._candidates, seed=prepared.seed),
        }

    def _best(self, places: Sequence[int]) -> Sequence[int]:
        """Those candidates for one prompt that are shown, the likeliest first if there are more."""
        if self._prepared.choices == len(places):
            return places
        by_logprob = sorted(places, key=lambda place: -self._candidates[place].cumulative_logprob)
        return by_logprob[: self._prepared.choices]

    def _choice(self, index: int, place: int) -> dict[str, object]:
        candidate, logprobs = self._candidates[place], None
        facts = {"index": index, "finish_reason": candidate.reason or "error"}
        if self._prepared.kind == "chat":
            if self._prepared.logprobs is not None:
                logprobs = chat_logprobs(candidate.logprobs)
            message = {"role": "assistant", "content": candidate.text, "refusal": None}
            return {**facts, "message": message, "logprobs": logprobs}
        echo = self._echo(place)
        if self._prepared.logprobs is not None:
            tokens = [*candidate.prompt_logprobs, *candidate.logprobs]
            return {**facts, "text": self._text(place), "logprobs": CompletionLogprobs(echo).add(tokens)}
        return {**facts, "text": self._text(place), "logprobs": None}

    def _text(self, place: int) -> str:
        echo = self._echo(place)
        return ("" if echo is None else echo.text) + self._candidates[place].text + self._prepared.suffix

    def _chunks(self, place: int, event: Event) -> Iterator[bytes]:
        """What an event, which the candidate has heard already, adds to a stream."""
        prepared, candidate = self._prepared, self._candidates[place]
        if not self._opened:
            self._opened = True
            yield from self._openings()
        if isinstance(event, PromptLogprobs):
            yield self._writer.text(place, self._echoed(place), logprobs=self._offsets[place].add(event.logprobs))
        elif isinstance(event, Delta):
            logprobs = self._logprobs(place, event)
            if event.text or logprobs is not None:
                clock = candidate.timings() if prepared.timings_per_token else None
                yield self._writer.text(place, event.text, logprobs=logprobs, timings=clock)
        elif isinstance(event, Finished):
            assert candidate.reason is not None  # or hearing it would have been an error
            if prepared.suffix:
                yield self._writer.text(place, prepared.suffix)
            last = all(other.reason is not None for other in self._candidates)
            total = timings(self._candidates, seed=prepared.seed) if last else None
            yield self._writer.ending(place, candidate.reason, timings=total)

    def _openings(self) -> Iterator[bytes]:
        """The first chunk of every choice: clients want to meet them in the order of their indices."""
        for place in range(len(self._candidates)):
            # with its log-probabilities the prompt comes as a piece of its own
            text = self._echoed(place) if self._prepared.logprobs is None else ""
            if text or self._prepared.kind == "chat" or len(self._candidates) > 1:
                yield self._writer.opening(place, text)

    def _logprobs(self, place: int, delta: Delta) -> Mapping[str, object] | None:
        if self._prepared.logprobs is None or not delta.logprobs:
            return None
        if self._prepared.kind == "chat":
            return chat_logprobs(delta.logprobs)
        return self._offsets[place].add(delta.logprobs)

    def _echo(self, place: int) -> Echo | None:
        echo = self._prepared.echo
        return None if echo is None else echo[place // self._prepared.candidates]

    def _echoed(self, place: int) -> str:
        echo = self._echo(place)
        return "" if echo is None else echo.text

    def _usage(self) -> dict[str, object]:
        return usage(self._candidates, per_prompt=self._prepared.candidates)


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
