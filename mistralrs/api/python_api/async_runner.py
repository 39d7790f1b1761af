"""``Runner`` for programs with an event loop: ``async with AsyncRunner(Which.MistralGGUF()) as runner: ...``.

Loading and preparing run in threads, so that the loop goes on. Events of the engine come to the loop of the caller.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from pydantic import BaseModel, TypeAdapter

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.python_api.async_answer_stream import AsyncAnswerStream, LoopEngine, SubmittedRequests
from mistralrs.api.python_api.python_answers import (
    ChatCompletionResponse,
    CompletionResponse,
    EmbeddingResponse,
    FinalAnswer,
    embedding_response,
    whole_answer,
)
from mistralrs.api.python_api.python_model import PythonModel
from mistralrs.api.python_api.python_requests import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    Messages,
)
from mistralrs.api.python_api.runner import Runner
from mistralrs.api.python_api.runner_options import RunnerOptions, TokenizeOptions, check_types
from mistralrs.api.schemas.response_bodies import ChatCompletionChunk, CompletionChunk
from mistralrs.api.serving.answers.respond import Answer, AnswerError, embeddings, submit
from mistralrs.api.serving.prepare import Prepared, PreparedEmbeddings
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.errors import EngineError, UsageError

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.known_adapters import KnownAdapter
    from mistralrs.api.selectors.which import Which
    from mistralrs.api.served_model import ModelInfo
    from mistralrs.engine.stats import EngineStats

Whole = TypeVar("Whole", ChatCompletionResponse, CompletionResponse)
Chunk = TypeVar("Chunk", bound=BaseModel)
Ready = TypeVar("Ready", Prepared, PreparedEmbeddings)
Result = TypeVar("Result")


class AsyncRunner(ProcessBound):
    """A loaded model for any number of tasks, whose requests run in one batch; an asynchronous context manager.

    Methods that wait are coroutines. A task that is cancelled while it waits for an answer frees the answer's place
    within one step. It belongs to its process as ``Runner`` does, and may be used from any event loop of it.
    """

    def __init__(self, which: Which, **options: Unpack[RunnerOptions]) -> None:
        """Loads nothing yet: ``async with`` and ``load`` do. ``options``: those of ``Runner``. Raises TypeError for
        names that it does not have."""
        super().__init__()
        inspect.signature(Runner).bind(which, **options)
        check_types(which, options.get("in_situ_quant"))
        self._make: Callable[[], Runner] = functools.partial(Runner, which, **options)
        self._loading: Future[Runner] | None = None
        self._closed = False

    @classmethod
    def of(cls, runner: Runner) -> AsyncRunner:
        """Returns a runner for event loops that shares the model of ``runner``; closing one of them closes both."""
        shared = cls.__new__(cls)
        ProcessBound.__init__(shared)
        shared._make = lambda: runner
        shared._loading = Future()
        shared._loading.set_result(runner)
        shared._closed = False
        return shared

    async def load(self) -> AsyncRunner:
        """Loads the model in a thread, once, and returns this runner. Raises as ``Runner`` does.

        A task that is cancelled meanwhile does not end the loading; ``close`` frees what it loads.
        """
        self._require_process()
        if self._closed:
            raise _closed()
        if self._loading is None:
            executor = ThreadPoolExecutor(1, thread_name_prefix="mistralrs-load")
            self._loading = executor.submit(self._make)
            executor.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._loading))
        return self

    async def send_chat_completion_request(
        self, request: ChatCompletionRequest
    ) -> ChatCompletionResponse | AsyncAnswerStream[ChatCompletionChunk]:
        """Answers a conversation: whole, or with ``stream=True`` piece by piece. Raises as ``Runner`` does."""
        loaded = self._ready().loaded
        begun = await _begin(loaded, functools.partial(loaded.prepare_chat, request))
        return await _answer(loaded, begun, ChatCompletionResponse, ChatCompletionChunk, request.response_adapter)

    async def send_completion_request(
        self, request: CompletionRequest
    ) -> CompletionResponse | AsyncAnswerStream[CompletionChunk]:
        """Continues a text: whole, or with ``stream=True`` piece by piece. Raises what a chat raises."""
        loaded = self._ready().loaded
        begun = await _begin(loaded, functools.partial(loaded.prepare_completion, request))
        return await _answer(loaded, begun, CompletionResponse, CompletionChunk)

    async def send_embedding_request(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Returns an embedding of L2 norm 1 for each text. Raises what a chat raises."""
        loaded = self._ready().loaded
        begun = await _begin(loaded, functools.partial(loaded.prepare_embeddings, request))
        model_name = begun.prepared.model_name or loaded.policy.model_name
        answer = await embeddings(begun.prepared, begun.streams, model_name=model_name)
        return embedding_response(answer.body(), answer.hidden_states)

    async def tokenize(self, text: str | Messages, **options: Unpack[TokenizeOptions]) -> list[int]:
        """Returns the ids that a request would be computed from; ``options`` and errors are those of ``Runner``."""
        return await asyncio.to_thread(functools.partial(self._ready().tokenize, text, **options))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Returns the text of ids, as ``Runner`` does."""
        return await asyncio.to_thread(self._ready().detokenize, tokens)

    async def load_lora_adapter(self, name: str, source: str | os.PathLike[str], *, load_inplace: bool = False) -> None:
        """Lets requests choose a LoRA adapter by ``name``, as ``Runner`` does."""
        make = functools.partial(self._ready().load_lora_adapter, name, source, load_inplace=load_inplace)
        await asyncio.to_thread(make)

    async def unload_lora_adapter(self, name: str) -> None:
        """Lets no new request choose the adapter, as ``Runner`` does."""
        await asyncio.to_thread(self._ready().unload_lora_adapter, name)

    @property
    def info(self) -> ModelInfo:
        """Returns facts about the loaded model and the backend that serves it."""
        return self._ready().info

    def lora_adapters(self) -> tuple[KnownAdapter, ...]:
        """Returns the adapters that requests can choose."""
        return self._ready().lora_adapters()

    def stats(self) -> EngineStats:
        """Returns a snapshot of the engine's statistics."""
        return self._ready().stats()

    async def close(self) -> None:
        """Ends running requests, whose tasks get ``EngineError``, and the engine. Idempotent."""
        self._closed = True
        if self._loading is not None and not self._is_forked:
            # a model that is still being loaded is closed by the thread that loads it
            await asyncio.to_thread(self._loading.add_done_callback, _close_loaded)

    async def __aenter__(self) -> AsyncRunner:
        try:
            return await self.load()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _ready(self) -> Runner:
        self._require_process()
        if self._closed:
            raise _closed()
        if self._loading is None or not self._loading.done():
            raise UsageError("the runner has not loaded its model yet", hint="await runner.load(), or use async with")
        return self._loading.result()


def _closed() -> EngineError:
    return EngineError("the runner is closed", hint="make another one")


def _close_loaded(loading: Future[Runner]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()


async def _begin(loaded: PythonModel, prepare: Callable[[], Ready]) -> SubmittedRequests[Ready]:
    """Prepares a request and submits it, in a thread, because templates and adapters may take their time.

    A task that is cancelled meanwhile cancels what the thread submits.
    """
    engine = LoopEngine(asyncio.get_running_loop(), loaded.model.adapters)

    def begin() -> SubmittedRequests[Ready]:
        prepared = prepare()
        return SubmittedRequests(prepared, submit(engine, prepared.requests, prepared.adapters))

    beginning = asyncio.get_running_loop().run_in_executor(None, begin)
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(_cancel_begun)
        raise


def _cancel_begun(beginning: asyncio.Future[SubmittedRequests[Any]]) -> None:
    if not beginning.cancelled() and beginning.exception() is None:
        _cancel(beginning.result().streams)


def _cancel(streams: Sequence[AsyncStream]) -> None:
    for stream in streams:
        stream.cancel()


async def _answer(
    loaded: PythonModel,
    begun: SubmittedRequests[Prepared],
    whole: type[Whole],
    chunk: type[Chunk],
    adapter: TypeAdapter[Any] | None = None,
) -> Whole | AsyncAnswerStream[Chunk]:
    for sentence in begun.prepared.warnings:
        warnings.warn(sentence, stacklevel=3)
    answer = Answer(begun.prepared, **loaded.answer_facts(begun.prepared))
    if begun.prepared.stream:
        final = FinalAnswer(lambda: whole_answer(whole, answer.snapshot(), adapter))
        return AsyncAnswerStream(loaded.model, begun.streams, answer=answer, kind=chunk, final=final)
    try:
        body = await answer.whole(begun.streams)
    except AnswerError as failed:
        raise copy.copy(failed.error) from None  # a step that fails gives one error to several tasks
    return whole_answer(whole, body, adapter)
