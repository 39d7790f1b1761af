"""A model in this process, as the command line drives it: loading, text and engine put together. ``load`` does heavy
imports, because naming a model must not cost a second."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mistralrs.api.draft_loading import draft_needs, load_draft
from mistralrs.api.engine_start import adapter_placement, is_exact, load_plan, start_engine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.plugin_file import load_plugin
from mistralrs.api.read_stream import ReadStream
from mistralrs.api.served_model import ModelInfo, ServedModel
from mistralrs.api.serving.model_sampling import usable_sampling
from mistralrs.api.serving.policy import Policy
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.engine.request_hooks import NamedHooks
from mistralrs.errors import LoadError, RequestError
from mistralrs.process import garbage_collected_later, import_torch_without_working_folder
from mistralrs.progress import Progress
from mistralrs.text.worker import workers

if TYPE_CHECKING:
    from mistralrs.api.loaded_adapters.known_adapters import KnownAdapters
    from mistralrs.api.loaded_adapters.model_adapters import ModelAdapters
    from mistralrs.engine.config import Request
    from mistralrs.engine.engine import Engine
    from mistralrs.engine.events import Stream
    from mistralrs.engine.stats import EngineStats
    from mistralrs.grammar.grammar_text import GrammarText
    from mistralrs.loading.pipeline import LoadPlan, Model
    from mistralrs.loading.text_source import TextSource
    from mistralrs.ops.backend import ResolvedBackend
    from mistralrs.text.chat_template import ChatTemplate
    from mistralrs.text.response.call_format import CallFormat
    from mistralrs.text.tokenizer import Tokenizer


class LocalModel(ProcessBound):
    """A loaded model with its engine; a context manager. Safe from any thread, in the process that loaded it."""

    def __init__(self, model: Model, engine: Engine, info: ModelInfo, adapters: ModelAdapters) -> None:
        super().__init__()
        self.engine = engine
        """The engine, for requests that ``chat`` and ``complete`` do not make and that name no adapters."""
        self.adapters = adapters
        """The model's adapters, through which requests reach the engine that name some."""
        # the engine's thread must not be inside native code when the interpreter is torn down
        weakref.finalize(self, engine.close)
        self.info = info
        self.tokenizer: Tokenizer = model.tokenizer
        self.template: ChatTemplate | None = model.template
        self.has_template = model.template is not None
        self.vocab_size: int = engine.vocab_size
        self._served = ServedModel(
            info,
            model.tokenizer,
            model.template,
            max_len=engine.max_len,
            vocab_size=engine.vocab_size,
            hidden_size=model.spec.hidden_size,
            responses=model.responses,
            call_format=_call_format(model),
            hooks=engine.named_hooks.names,
        )

    @property
    def served(self) -> ServedModel:
        """Returns the data that preparing a request needs, as they are now."""
        return replace(self._served, adapters=self.adapters.known())

    @classmethod
    @garbage_collected_later()
    def load(cls, source: ModelSource, options: LoadOptions, *, progress: Progress | None = None) -> LocalModel:
        """Finds, checks and loads the model and its adapters. Raises ``LoadError`` or ``UsageError``."""
        started = time.perf_counter()
        named_hooks = _prepare_process(options.plugin)
        from mistralrs.api.loaded_adapters.adapter_loading import AdapterLoading
        from mistralrs.api.loaded_adapters.adapter_sources import base_name, resolve_adapters
        from mistralrs.loading.pipeline import load
        from mistralrs.ops.backend import resolve

        token = hub_token(options.token_source)
        base = base_name(source, options.tok_model_id)
        found = resolve_adapters(options.adapters, base=base, token=token, progress=progress)
        options = replace(options, adapters=found)
        path = _find(source, token, progress)
        adapters = AdapterLoading.find(
            options.adapters,
            path,
            isq=options.isq,
            gqa=source.gqa,
            base=base,
            token=token,
            progress=progress,
        )
        resolved = resolve("cpu", threads=options.threads, isa=options.isa)
        needs = draft_needs(options, resolved.backend, find=lambda other: _find(other, token, progress))
        plan = load_plan(source, options, _text_source(options, token, progress), adapters, draft=needs)
        model = load(path, resolved.backend, plan, architecture=source.architecture, progress=progress)
        executor = adapters.executor(model, resolved.backend, is_exact=is_exact(options))
        draft = None
        if needs is not None:
            draft = load_draft(needs, model, options, resolved.backend, progress=progress)
        engine = start_engine(
            executor, model, options, resolved.backend, adapters, named_hooks=named_hooks, draft_model=draft
        )
        # the folder of a model in the hub's cache is named by its commit
        name = source.repo if source.repo and path.is_dir() else model.name
        info = _info(name, model, engine, plan=plan, resolved=resolved, load_s=time.perf_counter() - started)
        try:
            placement = adapter_placement(model, options, resolved.backend) if adapters.slots else None
            return cls(model, engine, info, adapters.finish(model, engine, placement, name=name))
        except BaseException:
            engine.close()
            raise

    def tokens_of(self, messages: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
        """Returns the prompt that ``chat`` makes of the messages, however long it is.

        Raises ``RequestError``, also when there is no chat template, and ``ContextLengthError`` for messages that are
        far too long. Ctrl-C ends it.
        """
        self._require_process()
        from mistralrs.api.serving.engine_requests import conversation_tokens, plain_conversation

        policy = Policy(self.info.name)
        return conversation_tokens(plain_conversation(messages, self.served, policy), self.served, policy).ids

    def count(self, messages: Sequence[Mapping[str, object]]) -> int:
        """Returns the number of prompt tokens that ``chat`` would send. Raises as ``tokens_of`` does."""
        return len(self.tokens_of(messages))

    @property
    def template_source(self) -> str:
        """Returns the chat template. Raises ``RequestError`` for a model without one."""
        if self.template is None:
            raise RequestError(f"{self.info.name} has no chat template", hint="-c gives one")
        return self.template.source

    def known_adapters(self) -> KnownAdapters:
        """Returns the adapters that requests can name at this moment."""
        return self.adapters.known()

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        sampling: SamplingParams,
        *,
        truncate: bool = False,
        adapters: Mapping[str, float] | None = None,
        scalings: bool = False,
        grammar: GrammarText | None = None,
        thinking: bool | None = None,
        continues: bool = False,
    ) -> Stream | ReadStream:
        """Answers a conversation; ``truncate`` drops the beginning of one that is too long. ``adapters``: names and
        weights of those that act; None: the default ones. ``scalings``: asks for the event ``Scalings``, which has
        those of X-LoRA for all tokens that were computed. ``grammar``: the answer matches it; None: any text.
        ``thinking``: whether the model thinks first; None: as its template does. Its thinking comes as ``Thought``.
        ``continues``: the answer goes on where the last message ends.

        Raises ``RequestError`` and ``ContextLengthError`` at once. Ctrl-C ends it.
        """
        self._require_process()
        from mistralrs.api.serving.engine_requests import chat_request

        policy = Policy(self.info.name, truncate=truncate)
        served = self.served
        request, parts = chat_request(
            messages, sampling, served, policy, grammar=grammar, thinking=thinking, continues=continues
        )
        stream = self._submit(request, adapters, scalings=scalings)
        return stream if parts is None else ReadStream(stream, parts.parser())

    def complete(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        *,
        adapters: Mapping[str, float] | None = None,
        scalings: bool = False,
    ) -> Stream:
        """Continues token ids; ``adapters`` and ``scalings`` as for ``chat``. Raises ``RequestError`` and
        ``ContextLengthError`` at once."""
        self._require_process()
        from mistralrs.api.serving.engine_requests import ids_request

        request = ids_request(prompt, sampling, self.served, Policy(self.info.name))
        return self._submit(request, adapters, scalings=scalings)

    def _submit(self, request: Request, adapters: Mapping[str, float] | None, *, scalings: bool) -> Stream:
        if scalings:
            self.known_adapters().require_scalings()
            request = replace(request, wants_scalings=True)
        return self.adapters.submit(request, adapters)

    def stats(self) -> EngineStats:
        """Returns a snapshot of the engine."""
        return self.engine.stats()

    def close(self) -> None:
        """Cancels running requests and ends the engine."""
        self.engine.close()
        workers.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _call_format(model: Model) -> CallFormat | None:
    """Returns how the model writes tool calls, if that is known."""
    if model.template is None or model.responses is None:
        return None
    from mistralrs.text.response.call_format import call_format_of

    return call_format_of(model.template.source, model.responses)


def _info(
    name: str, model: Model, engine: Engine, *, plan: LoadPlan, resolved: ResolvedBackend, load_s: float
) -> ModelInfo:
    from mistralrs.loading.kv_dtype import kv_token_bytes

    backend = resolved.backend
    return ModelInfo(
        name=name,
        architecture=model.architecture,
        quantization=model.quantization,
        context_length=engine.max_len,
        backend=backend.name,
        threads=backend.threads,
        parameters=model.parameters,
        file_bytes=model.file_bytes,
        kv_bytes=model.decoder.kv_bytes,
        load_s=load_s,
        unavailable_backends=resolved.unavailable_backends,
        sampling=usable_sampling(model.sampling),
        precision=plan.precision,
        kv_cache_dtype=model.limits.kv_dtype,
        kv_token_bytes=kv_token_bytes(model.spec, model.limits.kv_dtype),
    )


def _prepare_process(plugin: Path | None) -> NamedHooks:
    """Begins what takes time and needs no model. Returns the hooks of the plugin."""
    import_torch_without_working_folder()  # for what needs torch later
    workers.start()  # the template's process gets ready meanwhile
    return NamedHooks() if plugin is None else load_plugin(plugin)


def hub_token(source: str) -> Callable[[], str | None]:
    """Returns the hub token, read when it is needed: a malformed source is an error even when nothing is fetched."""
    from mistralrs.loading.token_source import token

    if source == "cache":  # costs an import of the hub client
        return lambda: token(source)
    value = token(source)
    return lambda: value


def locate(source: ModelSource, *, token_source: str = "cache", progress: Progress | None = None) -> Path:
    """Returns the file or folder of a model, downloaded if need be. Raises ``LoadError`` and ``UsageError``."""
    return _find(source, hub_token(token_source), progress)


def _find(source: ModelSource, token: Callable[[], str | None], progress: Progress | None) -> Path:
    from mistralrs.loading.hub_model import fetch_model, fetch_parts, local_model

    if source.path is not None:
        return local_model(source.path)
    if source.repo is None:
        raise LoadError("neither a file nor a repository was named", hint="mistralrs -i auto model.gguf")
    if source.filename is None:
        return fetch_model(source.repo, architecture=source.architecture, token=token(), progress=progress)
    return fetch_parts(source.repo, source.filename, token=token(), progress=progress)


def _text_source(options: LoadOptions, token: Callable[[], str | None], progress: Progress | None) -> TextSource:
    from mistralrs.loading.text_source import TextSource

    return TextSource(
        chat_template=options.chat_template,
        tokenizer_json=options.tokenizer_json,
        tok_model_id=options.tok_model_id,
        token=token if options.tok_model_id else None,
        progress=progress,
    )
