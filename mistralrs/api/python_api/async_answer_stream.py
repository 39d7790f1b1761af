"""Answers on an event loop: requests whose events come to it, and the stream of an answer's chunks."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.python_api.python_answers import (
    ChatCompletionResponse,
    CompletionResponse,
    FinalAnswer,
    chunk_answer,
)
from mistralrs.api.serving.answers.respond import Answer, AnswerError
from mistralrs.engine.process_bound import ProcessBound

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters
    from mistralrs.api.local_model import LocalModel
    from mistralrs.engine.config import Request
    from mistralrs.engine.events import Event, Handle

Chunk = TypeVar("Chunk", bound=BaseModel)
Ready = TypeVar("Ready")


@dataclass(frozen=True, slots=True)
class SubmittedRequests(Generic[Ready]):
    """A prepared request, and the streams of its engine requests."""

    prepared: Ready
    streams: tuple[AsyncStream, ...]


class LoopEngine:
    """Submits requests from any thread; their events come to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, adapters: ModelAdapters) -> None:
        self._loop = loop
        self._adapters = adapters

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> AsyncStream:
        """Returns the request's stream. Waits and raises as ``ModelAdapters.submit_to`` does."""
        handles: list[Handle] = []
        stream = AsyncStream(lambda: _cancel_all(handles))

        def deliver(event: Event) -> None:
            try:
                self._loop.call_soon_threadsafe(stream.put, event)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise
                stream.cancel()  # with its loop, everybody who could read it has gone

        handles.append(self._adapters.submit_to(deliver, request, adapters))
        return stream


def _cancel_all(handles: Sequence[Handle]) -> None:
    for handle in handles:
        handle.cancel()


class AsyncAnswerStream(ProcessBound, Generic[Chunk]):
    """An answer under way, to be iterated for its chunks; an asynchronous context manager. One task may iterate.

    Closing or releasing it cancels the rest of the answer, as does cancelling the task that waits for a chunk. An
    ``EngineError`` ends it.
    """

    def __init__(
        self,
        model: LocalModel,
        streams: Sequence[AsyncStream],
        *,
        answer: Answer,
        kind: type[Chunk],
        final: FinalAnswer,
    ) -> None:
        """Called only by ``AsyncRunner``."""
        super().__init__()
        self._model = model  # the engine would end with it
        self._streams = streams
        self._bodies = answer.bodies(streams)
        self._kind = kind
        self._final = final
        self._closed = False

    def __aiter__(self) -> AsyncAnswerStream[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        if self._closed:
            raise StopAsyncIteration
        self._require_process()
        try:
            body = await anext(self._bodies)
        except StopAsyncIteration:
            self._final.is_there = True
            raise
        except AnswerError as failed:
            if self._closed:  # another task closed it while this one waited
                raise StopAsyncIteration from None
            self._closed = True
            raise copy.copy(failed.error) from None
        return chunk_answer(self._kind, body)

    async def get_final_completion(self) -> ChatCompletionResponse | CompletionResponse:
        """Reads the stream to its end, and returns the answer as ``AnswerStream.get_final_completion`` does."""
        async for _ in self:
            pass
        return self._final.get()

    @property
    def parsed(self) -> Any:
        """Returns the first choice as ``AnswerStream.parsed`` does, once the stream has ended."""
        return self._final.parsed

    async def close(self) -> None:
        """Cancels the rest, which frees its place within a step; does nothing at the end."""
        self._closed = True
        self._cancel()

    async def __aenter__(self) -> AsyncAnswerStream[Chunk]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()
