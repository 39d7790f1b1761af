"""Streams of answers for Python callers, which wait on a queue and so let other threads run."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from mistralrs.api.local_model import LocalModel
from mistralrs.api.python_api.python_answers import (
    ChatCompletionResponse,
    CompletionResponse,
    FinalAnswer,
    chunk_answer,
)
from mistralrs.api.serving.answers.respond import submit
from mistralrs.api.serving.answers.response_builder import ResponseBuilder
from mistralrs.engine.config import Request
from mistralrs.engine.events import End, Event, Handle
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.errors import MistralrsError

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters

Chunk = TypeVar("Chunk", bound=BaseModel)


class AnswerStream(ProcessBound, Generic[Chunk]):
    """An answer under way, to be iterated for its chunks; a context manager. One thread at a time may iterate.

    Closing or releasing it cancels the rest of the answer. An ``EngineError`` ends it.
    """

    def __init__(
        self,
        model: LocalModel,
        events: EventQueue,
        *,
        builder: ResponseBuilder,
        kind: type[Chunk],
        final: FinalAnswer,
    ) -> None:
        """Called only by ``Runner``."""
        super().__init__()
        self._model = model  # the engine would end with it
        self._events = events
        self._bodies = _chunk_bodies(events, builder)
        self._kind = kind
        self._final = final
        self._closed = False

    def __iter__(self) -> AnswerStream[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._closed:
            raise StopIteration
        self._require_process()
        try:
            body = next(self._bodies)
        except StopIteration:
            self._final.is_there = True
            raise
        except MistralrsError:
            if self._closed:  # another thread closed it while this one waited
                raise StopIteration from None
            self._closed = True
            raise
        return chunk_answer(self._kind, body)

    def get_final_completion(self) -> ChatCompletionResponse | CompletionResponse:
        """Reads the stream to its end, and returns the answer as a request without ``stream`` has it.

        Raises ``EngineError`` where the answer cannot be finished, and ``UsageError`` where the stream was closed
        before its end.
        """
        for _ in self:
            pass
        return self._final.get()

    @property
    def parsed(self) -> Any:
        """Returns the first choice as a value of the request's ``response_model``, once the stream has ended.

        Raises ``UsageError`` before that, and as ``ChatCompletionResponse.parsed`` does.
        """
        return self._final.parsed

    def close(self) -> None:
        """Cancels the rest, which frees its place within a step; does nothing at the end. Safe from any thread."""
        self._closed = True
        self._events.cancel()

    def __enter__(self) -> AnswerStream[Chunk]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._events.cancel()


class EventQueue:
    """The events of an answer's requests, for one thread that waits; all are submitted or none."""

    def __init__(
        self,
        engine: ModelAdapters,
        requests: Sequence[Request],
        adapters: Mapping[str, float] | None,
        *,
        as_they_come: bool = False,
    ) -> None:
        """``adapters``: names and weights of those that act; None: the default ones. ``as_they_come``: each event wakes
        the thread; otherwise the ends alone do, because threads that wake up in every step take the interpreter from
        the engine's thread."""
        self._engine = engine
        self._as_they_come = as_they_come
        self._unread: list[tuple[int, Event]] = []
        self._batches: SimpleQueue[list[tuple[int, Event]]] = SimpleQueue()
        self._delivering = threading.Lock()
        """A thread of the engine delivers, and the submitting thread too where a request fails at once."""
        self._num_open = 0
        self._handles = submit(self, requests, adapters)

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> Handle:
        """Submits the answer's requests with ``submit``, in their order."""
        place = self._num_open
        self._num_open += 1
        return self._engine.submit_to(lambda event: self._deliver(place, event), request, adapters)

    def _deliver(self, place: int, event: Event) -> None:
        with self._delivering:
            self._unread.append((place, event))
            if self._as_they_come or isinstance(event, End):
                self._batches.put(self._unread)
                self._unread = []

    def __iter__(self) -> Iterator[tuple[int, Event]]:
        while self._num_open:
            for place, event in self._batches.get():
                self._num_open -= isinstance(event, End)
                yield place, event

    def cancel(self) -> None:
        """Cancels all requests. May be called from any thread, any number of times."""
        for handle in self._handles:
            handle.cancel()


def _chunk_bodies(events: EventQueue, builder: ResponseBuilder) -> Iterator[dict[str, object]]:
    """Yields the chunks of a stream. A method's generator would keep a stream alive that its caller has dropped."""
    for place, event in checked_events(events, builder):
        yield from map(builder.chunk_body, builder.chunks(place, event))
    yield from map(builder.chunk_body, builder.last_chunks())


def checked_events(queue: EventQueue, builder: ResponseBuilder) -> Iterator[tuple[int, Event]]:
    """Yields the events, which the builder has taken. Raises the error that ends a request, and cancels the others.

    A step that fails gives one error to several callers, so each of them gets a copy.
    """
    for place, event in queue:
        error = builder.on_event(place, event)
        if error is not None:
            queue.cancel()
            raise copy.copy(error)
        yield place, event
