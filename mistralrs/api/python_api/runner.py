"""A model in this process for Python callers: ``Runner(Which.MistralGGUF()).send_chat_completion_request(...)``.

Combines a selector, a loaded model, a request and its answer, each of which has a module of its own. Callers wait on a
queue, which lets other threads run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter

from mistralrs.api.loaded_adapters.known_adapters import KnownAdapter
from mistralrs.api.options.declarations import DEFAULTS
from mistralrs.api.options.kv_flags import KvCacheDtype
from mistralrs.api.python_api.answer_stream import AnswerStream, EventQueue, checked_events
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
from mistralrs.api.python_api.runner_options import RunnerOptions, TokenizeOptions
from mistralrs.api.schemas.response_bodies import ChatCompletionChunk, CompletionChunk
from mistralrs.api.selectors.python_errors import python_errors
from mistralrs.api.selectors.which import Which
from mistralrs.api.served_model import ModelInfo
from mistralrs.api.serving.answers.respond import EmbeddingsAnswer
from mistralrs.api.serving.answers.response_builder import ResponseBuilder
from mistralrs.api.serving.prepare import Prepared
from mistralrs.engine.process_bound import ProcessBound

if TYPE_CHECKING:
    from mistralrs.engine.stats import EngineStats

Whole = TypeVar("Whole", ChatCompletionResponse, CompletionResponse)
Chunk = TypeVar("Chunk", bound=BaseModel)


class Runner(ProcessBound):
    """A loaded model; a context manager. Safe from any number of threads, whose requests run in one batch.

    It belongs to the process that made it: methods raise ``EngineError`` at once in a fork, and copying or pickling it
    raises ``TypeError``.
    """

    loaded: PythonModel
    """The model that prepares requests, for ``AsyncRunner``."""

    def __init__(
        self,
        which: Which,
        max_seqs: int = DEFAULTS.max_seqs,
        no_kv_cache: bool = DEFAULTS.no_kv_cache,
        prefix_cache_n: int = DEFAULTS.prefix_cache_n,
        token_source: str = DEFAULTS.token_source,
        chat_template: str | os.PathLike[str] | None = None,
        num_device_layers: int | Sequence[str] | None = None,
        *,
        in_situ_quant: str | None = None,
        precision: Literal["fast", "default", "high"] = DEFAULTS.precision,
        dtype: Literal["auto", "bf16", "f16", "f32"] = DEFAULTS.dtype,
        threads: int | None = DEFAULTS.threads,
        kv_memory: int | None = DEFAULTS.kv_memory,
        kv_cache_dtype: KvCacheDtype = DEFAULTS.kv_cache_dtype,
        kv_dir: str | os.PathLike[str] | None = None,
        max_draft: int | None = DEFAULTS.max_draft,
        draft_model: str | os.PathLike[str] | None = None,
        max_model_len: int | None = DEFAULTS.max_model_len,
        no_pack: bool = DEFAULTS.no_pack,
        merge: bool | None = DEFAULTS.merge,
        max_adapters: int | None = DEFAULTS.max_adapters,
    ) -> None:
        """Loads the model, fetched first if need be. ``LoadOptions`` has the options; ``in_situ_quant`` is its ``isq``.
        Layers on an accelerator are refused. Raises TypeError, ``UsageError`` and ``LoadError``."""
        super().__init__()
        options: RunnerOptions = {
            "max_seqs": max_seqs,
            "no_kv_cache": no_kv_cache,
            "prefix_cache_n": prefix_cache_n,
            "token_source": token_source,
            "chat_template": chat_template,
            "num_device_layers": num_device_layers,
            "in_situ_quant": in_situ_quant,
            "precision": precision,
            "dtype": dtype,
            "threads": threads,
            "kv_memory": kv_memory,
            "kv_cache_dtype": kv_cache_dtype,
            "kv_dir": kv_dir,
            "max_draft": max_draft,
            "draft_model": draft_model,
            "max_model_len": max_model_len,
            "no_pack": no_pack,
            "merge": merge,
            "max_adapters": max_adapters,
        }
        self.loaded = PythonModel.load(which, options)
        self._model = self.loaded.model

    @property
    def info(self) -> ModelInfo:
        """Returns facts about the loaded model and the backend that serves it."""
        return self._model.info

    def send_chat_completion_request(
        self, request: ChatCompletionRequest
    ) -> ChatCompletionResponse | AnswerStream[ChatCompletionChunk]:
        """Answers a conversation: whole, or with ``stream=True`` piece by piece.

        Raises ``RequestError`` and ``ContextLengthError`` for what cannot be served, ``EngineError`` for what the
        engine could not finish, also because the runner was closed. Warns where a grammar's language differs from its
        text.
        """
        self._require_process()
        prepared = self.loaded.prepare_chat(request)
        return self._answer(prepared, ChatCompletionResponse, ChatCompletionChunk, request.response_adapter)

    def send_completion_request(self, request: CompletionRequest) -> CompletionResponse | AnswerStream[CompletionChunk]:
        """Continues a text: whole, or with ``stream=True`` piece by piece. Raises what a chat raises."""
        self._require_process()
        return self._answer(self.loaded.prepare_completion(request), CompletionResponse, CompletionChunk)

    def send_embedding_request(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Returns an embedding of L2 norm 1 for each text. Raises what a chat raises."""
        self._require_process()
        prepared = self.loaded.prepare_embeddings(request)
        answer = EmbeddingsAnswer(prepared, model_name=prepared.model_name or self.loaded.policy.model_name)
        news = EventQueue(self._model.adapters, prepared.requests, prepared.adapters)
        try:
            for place, event in news:
                answer.on_event(place, event)
        except BaseException:
            news.cancel()
            raise
        return embedding_response(answer.body(), answer.hidden_states)

    def tokenize(
        self,
        text: str | Messages,
        *,
        add_special_tokens: bool | None = None,
        parse_special: bool | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Returns the ids that a request with this text, or with these messages, would be computed from.

        Of a text: ``add_special_tokens`` puts BOS in front where the tokenizer does so, and with ``parse_special`` a
        text that spells a control token becomes it; both are true if left out. Of messages: as the body's fields of
        these names; the prompt ends where the answer begins. A length is no error. Raises ``RequestError``, also for an
        option that does not apply.
        """
        self._require_process()
        options: TokenizeOptions = {
            "add_special_tokens": add_special_tokens,
            "parse_special": parse_special,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "chat_template_kwargs": chat_template_kwargs,
        }
        return self.loaded.tokenize(text, options)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Returns the text of ids; control tokens are spelled out, and bytes that are no text become U+FFFD.

        Raises ``RequestError`` for a number that is no token.
        """
        self._require_process()
        return self.loaded.detokenize(tokens)

    def load_lora_adapter(self, name: str, source: str | os.PathLike[str], *, load_inplace: bool = False) -> None:
        """Lets requests choose a LoRA adapter by ``name``; requests under way go on.

        ``source``: a folder as peft saves it, a GGUF file, or a hub repository (``owner/name``, perhaps with a folder
        behind it and ``@revision``). ``load_inplace``: it may replace an adapter of this name. Raises ``UsageError``
        for a name that cannot be or is taken, ``LoadError`` for an adapter that is damaged, not supported, not for this
        model, or has no slot, and ``EngineError`` after closing.
        """
        self._require_process()
        with python_errors():
            self._model.adapters.load_source(name, os.fspath(source), load_inplace=load_inplace)

    def unload_lora_adapter(self, name: str) -> None:
        """Lets no new request choose the adapter; those under way keep it. Raises ``RequestError`` for unknown ones."""
        self._require_process()
        self._model.adapters.unload(name)

    def lora_adapters(self) -> tuple[KnownAdapter, ...]:
        """Returns the adapters that requests can choose, in the order in which their names were first loaded."""
        self._require_process()
        return self._model.adapters.known().adapters

    def stats(self) -> EngineStats:
        """Returns a snapshot of the engine's statistics."""
        self._require_process()
        return self._model.stats()

    def close(self) -> None:
        """Ends running requests, whose callers get ``EngineError``, and the engine's thread. Idempotent."""
        self._model.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, prepared: Prepared, whole: type[Whole], chunk: type[Chunk], adapter: TypeAdapter[Any] | None = None
    ) -> Whole | AnswerStream[Chunk]:
        for sentence in prepared.warnings:
            warnings.warn(sentence, stacklevel=3)
        builder = ResponseBuilder(prepared, **self.loaded.answer_facts(prepared))
        news = EventQueue(self._model.adapters, prepared.requests, prepared.adapters, as_they_come=prepared.stream)
        if prepared.stream:
            final = FinalAnswer(lambda: whole_answer(whole, builder.snapshot(), adapter))
            return AnswerStream(self._model, news, builder=builder, kind=chunk, final=final)
        try:
            for _ in checked_events(news, builder):
                pass
        except BaseException:  # for example Ctrl-C
            news.cancel()
            raise
        return whole_answer(whole, builder.snapshot(), adapter)
