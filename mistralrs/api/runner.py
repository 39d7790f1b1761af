"""A model in this process for Python callers: ``Runner(Which.MistralGGUF()).send_chat_completion_request(...)``.

Combines a selector, a loaded model, a request and its answer, each of which has a module of its own. Callers wait on a
queue, which lets other threads run.
"""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from pydantic import BaseModel

from mistralrs.api.answer_stream import AnswerStream, EventQueue, checked_events
from mistralrs.api.load_options import LoadOptions
from mistralrs.api.loaded_adapters.adapter_options import AdapterOptions
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapter
from mistralrs.api.local_model import LocalModel
from mistralrs.api.options.declarations import DECLARED, DEFAULTS, types
from mistralrs.api.options.values import without_none
from mistralrs.api.schemas.python_requests import ChatCompletionRequest, CompletionRequest, refuse_ignored
from mistralrs.api.schemas.response_bodies import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from mistralrs.api.selectors.model_choice import (
    ModelChoice,
    check_together,
    find_source,
    in_situ_type,
    repeat_last_n_of,
    template_of,
)
from mistralrs.api.selectors.named_adapters import find_adapters
from mistralrs.api.selectors.which import Which
from mistralrs.api.selectors.which_fields import PythonErrorFormatter
from mistralrs.api.served_model import ModelInfo
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import Prepared, prepare_chat, prepare_completion
from mistralrs.api.serving.respond import answer_id
from mistralrs.api.serving.response_builder import ResponseBuilder
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.errors import UsageError

if TYPE_CHECKING:
    from mistralrs.engine.stats import EngineStats

Whole = TypeVar("Whole", bound=BaseModel)
Chunk = TypeVar("Chunk", bound=BaseModel)

FORMATTER = PythonErrorFormatter()
_TEMPLATE_HINT = "send a CompletionRequest, or give the runner a chat_template"
_CHECKED = (
    *("max_seqs", "prefix_cache_n", "threads", "kv_memory", "max_draft", "max_model_len", "precision", "dtype"),
    *("no_kv_cache", "token_source"),
)
"""Options of loading that ``_check`` reads, in its order; ``declarations`` has their ranges."""


class Runner(ProcessBound):
    """A loaded model; a context manager. Safe from any number of threads, whose requests run in one batch.

    It belongs to the process that made it: methods raise ``EngineError`` at once in a fork, and copying or pickling it
    raises ``TypeError``.
    """

    def __init__(
        self,
        which: Which,
        max_seqs: int = DEFAULTS.max_seqs,
        no_kv_cache: bool = DEFAULTS.no_kv_cache,
        prefix_cache_n: int = DEFAULTS.prefix_cache_n,
        token_source: str = DEFAULTS.token_source,
        chat_template: str | os.PathLike[str] | None = None,
        *,
        in_situ_quant: str | None = None,
        precision: Literal["default", "high"] = DEFAULTS.precision,
        dtype: Literal["auto", "bf16", "f16", "f32"] = DEFAULTS.dtype,
        threads: int | None = DEFAULTS.threads,
        kv_memory: int | None = DEFAULTS.kv_memory,
        kv_dir: str | os.PathLike[str] | None = None,
        max_draft: int | None = DEFAULTS.max_draft,
        max_model_len: int | None = DEFAULTS.max_model_len,
        merge: bool | None = DEFAULTS.merge,
        max_adapters: int | None = DEFAULTS.max_adapters,
    ) -> None:
        """Loads the model, fetched first if need be. ``LoadOptions`` has the options; ``in_situ_quant`` is its ``isq``.

        Raises TypeError and ``UsageError`` for arguments, before anything is read, and ``LoadError``.
        """
        super().__init__()
        _check_types(which, in_situ_quant)
        choice = which.choice()
        options = LoadOptions(
            max_seqs=max_seqs,
            prefix_cache_n=prefix_cache_n,
            kv_memory=kv_memory,
            kv_dir=None if kv_dir is None else Path(kv_dir),
            no_kv_cache=no_kv_cache,
            max_draft=max_draft,
            max_model_len=max_model_len,
            chat_template=template_of(choice) if chat_template is None else os.fspath(chat_template),
            tokenizer_json=choice.tokenizer_json,
            tok_model_id=choice.tok_model_id,
            token_source=token_source,
            precision=precision,
            threads=threads,
            dtype=dtype,
            isq=in_situ_type(in_situ_quant, choice.selector, FORMATTER),
            adapters=_adapters(choice, merge, max_adapters),
        )
        _check(options)
        self._model = LocalModel.load(find_source(choice, FORMATTER), options)
        sampling = SamplingParams(repeat_last_n=repeat_last_n_of(choice))
        self._policy = Policy(model_name=self.info.name, sampling=sampling, template_hint=_TEMPLATE_HINT)

    @property
    def info(self) -> ModelInfo:
        """Returns facts about the loaded model and the backend that serves it."""
        return self._model.info

    def send_chat_completion_request(
        self, request: ChatCompletionRequest
    ) -> ChatCompletion | AnswerStream[ChatCompletionChunk]:
        """Answers a conversation: whole, or with ``stream=True`` piece by piece.

        Raises ``RequestError`` and ``ContextLengthError`` for what cannot be served, ``EngineError`` for what the
        engine could not finish, also because the runner was closed. Warns where a grammar's language differs from its
        text.
        """
        if not isinstance(request, ChatCompletionRequest):
            raise TypeError(f"request must be a ChatCompletionRequest, not {type(request).__name__}")
        self.require_process()
        prepared = prepare_chat(request.body, self._model.served, self._policy)
        return self._answer(prepared, ChatCompletion, ChatCompletionChunk)

    def send_completion_request(self, request: CompletionRequest) -> Completion | AnswerStream[CompletionChunk]:
        """Continues a text: whole, or with ``stream=True`` piece by piece. Raises what a chat raises."""
        if not isinstance(request, CompletionRequest):
            raise TypeError(f"request must be a CompletionRequest, not {type(request).__name__}")
        self.require_process()
        prepared = prepare_completion(request.body, self._model.served, self._policy)
        return self._answer(prepared, Completion, CompletionChunk)

    def load_lora_adapter(self, name: str, source: str | os.PathLike[str], *, load_inplace: bool = False) -> None:
        """Lets requests choose a LoRA adapter by ``name``; requests under way go on.

        ``source``: a folder as peft saves it, a GGUF file, or a hub repository (``owner/name``, perhaps with a folder
        behind it and ``@revision``). ``load_inplace``: it may replace an adapter of this name. Raises ``UsageError``
        for a name that cannot be or is taken, ``LoadError`` for an adapter that is damaged, not supported, not for this
        model, or has no slot, and ``EngineError`` after closing.
        """
        self.require_process()
        self._model.adapters.load_source(name, os.fspath(source), load_inplace=load_inplace)

    def unload_lora_adapter(self, name: str) -> None:
        """Lets no new request choose the adapter; those under way keep it. Raises ``RequestError`` for unknown ones."""
        self.require_process()
        self._model.adapters.unload(name)

    def lora_adapters(self) -> tuple[KnownAdapter, ...]:
        """Returns the adapters that requests can choose, in the order in which their names were first loaded."""
        self.require_process()
        return self._model.adapters.known().adapters

    def stats(self) -> EngineStats:
        """Returns a snapshot of the engine's statistics."""
        self.require_process()
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

    def _answer(self, prepared: Prepared, whole: type[Whole], chunk: type[Chunk]) -> Whole | AnswerStream[Chunk]:
        refuse_ignored(prepared.ignored)
        for sentence in prepared.warnings:
            warnings.warn(sentence, stacklevel=3)
        model_name = prepared.model_name or self._policy.model_name
        builder = ResponseBuilder(prepared, id=answer_id(prepared), created=int(time.time()), model_name=model_name)
        news = EventQueue(self._model.adapters, prepared.requests, prepared.adapters)
        if prepared.stream:
            return AnswerStream(self._model, news, builder, chunk)
        try:
            for _ in checked_events(news, builder):
                pass
        except BaseException:  # for example Ctrl-C
            news.cancel()
            raise
        return whole.model_validate(builder.snapshot())


def _check_types(which: object, in_situ_quant: object) -> None:
    if not isinstance(which, Which):
        raise TypeError(f"which must be a row of Which, not {type(which).__name__}")
    if not isinstance(in_situ_quant, str | None):
        raise TypeError(f"in_situ_quant must be str | None, not {type(in_situ_quant).__name__}")


def _adapters(choice: ModelChoice, merge: bool | None, max_adapters: int | None) -> AdapterOptions:
    """Returns the adapters of a runner. Others may come later if it has room that was asked for."""
    _check_one("merge", merge)
    _check_one("max_adapters", max_adapters)
    options = replace(DEFAULTS, merge=merge, max_adapters=max_adapters)
    return find_adapters(choice, FORMATTER, options=options, more_may_come=max_adapters is not None)


def _check(options: LoadOptions) -> None:
    """Raises TypeError and ``UsageError`` for options that are invalid by themselves or in combination."""
    for name in _CHECKED:
        _check_one(name, getattr(options, name))
    check_together(
        kv_dir=options.kv_dir is not None,
        no_kv_cache=options.no_kv_cache,
        prefix_cache_n=options.prefix_cache_n,
        max_draft=options.max_draft,
        formatter=FORMATTER,
    )


def _check_one(name: str, value: object) -> None:
    declared, hint = DECLARED[name], without_none(types()[name])
    if value is None and getattr(DEFAULTS, name) is None:
        return
    if words := get_args(hint):
        if value not in words:
            raise UsageError(f"{name} is {value!r}", hint=f"choose one of: {', '.join(words)}")
    elif not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        kind = "a whole number" if hint is int else hint.__name__
        raise TypeError(f"{name} must be {kind}, not {type(value).__name__}")
    elif isinstance(value, int) and declared.least is not None and value < declared.least:
        raise UsageError(f"{name} is {value}", hint=f"it must be at least {declared.least:g}")
    elif isinstance(value, int) and declared.most is not None and value > declared.most:
        raise UsageError(f"{name} is {value}", hint=f"it must be at most {declared.most:g}")
