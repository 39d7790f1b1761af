"""A model in this process, as the command line drives it: loading, text and engine put together.

Heavy imports happen in ``load``, because naming a model must not cost a second.
"""

from __future__ import annotations

import importlib
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from mistralrs.api.adapter_options import NO_ADAPTERS
from mistralrs.api.adapter_options import AdapterOptions as AdapterOptions
from mistralrs.api.adapter_options import AdapterSource as AdapterSource
from mistralrs.api.options.declarations import DEFAULTS
from mistralrs.api.served_model import ModelInfo, ServedModel
from mistralrs.api.serving.policy import Policy
from mistralrs.engine.config import EngineConfig, SamplingParams
from mistralrs.engine.process_bound import ProcessBound
from mistralrs.errors import LoadError
from mistralrs.process import import_torch_without_working_folder
from mistralrs.progress import Progress
from mistralrs.text.worker import workers

if TYPE_CHECKING:
    from mistralrs.adapters.adapter_placement import AdapterPlacement
    from mistralrs.api.adapter_loading import AdapterLoading
    from mistralrs.api.known_adapters import KnownAdapters
    from mistralrs.api.model_adapters import ModelAdapters
    from mistralrs.engine.engine import Engine, ModelExecutor
    from mistralrs.engine.events import Stream
    from mistralrs.engine.stats import EngineStats
    from mistralrs.loading.pipeline import LoadPlan, Model
    from mistralrs.loading.text_source import TextSource
    from mistralrs.ops.backend import Backend
    from mistralrs.text.chat_template import ChatTemplate
    from mistralrs.text.tokenizer import Tokenizer

MAX_DRAFT = 7
"""The default of ``LoadOptions.max_draft``: with the committed token, as many as kernels compute together."""

EVICTABLE_BYTES = 512 << 20
"""Older sequences beyond ``prefix_cache_n`` whose KV stays until its memory is needed."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The files of a model."""

    architecture: str | None
    """The architecture that they must hold, a name of ``models.registry.ARCHITECTURES``; None: any."""
    path: Path | None
    """A local file or folder, or"""
    repo: str | None
    """a hub repository, perhaps with ``@revision``, and"""
    filename: str | None
    """the file in it; None: the whole model."""
    gqa: int = 1
    """Query heads that share a KV head, a number that GGML files lack."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The settings of loading."""

    max_seqs: int = DEFAULTS.max_seqs
    max_queue: int | None = None
    """Requests that may wait beside those that run; None: any number."""
    prefix_cache_n: int = DEFAULTS.prefix_cache_n
    kv_memory: int | None = DEFAULTS.kv_memory
    """Bytes of the KV cache at most; None: half of what the weights leave."""
    kv_dir: Path | None = DEFAULTS.kv_dir
    """A folder in which KV outlives the process; None: it does not."""
    kv_dir_bytes: int = DEFAULTS.kv_dir_size
    """The most bytes that this folder may hold."""
    max_model_len: int | None = DEFAULTS.max_model_len
    """Tokens of context at most; None: those that the model was made for."""
    no_kv_cache: bool = DEFAULTS.no_kv_cache
    max_draft: int | None = DEFAULTS.max_draft
    """Draft tokens of one sequence in a step, at most; 0: none; None: some, where they cannot change an answer."""
    chat_template: str | None = None
    """Jinja text, or a path that ends in .json or .jinja; replaces the model's own template."""
    tokenizer_json: Path | None = None
    """A file that replaces the model's own tokenizer."""
    tok_model_id: str | None = None
    """A hub repository or folder whose tokenizer and template are used."""
    token_source: str = DEFAULTS.token_source
    precision: Literal["default", "high"] = DEFAULTS.precision
    """``high``: activations in two int8 terms everywhere, close to float32."""
    threads: int | None = DEFAULTS.threads
    """None: as many as there are physical cores."""
    isa: str | None = None
    """An instruction set of the kernels, or ``torch`` for none; None: the best."""
    max_batch_tokens: int = 512
    dtype: Literal["auto", "bf16", "f16", "f32"] = DEFAULTS.dtype
    """The type of weights that are stored as floats; ``auto``: as they are stored."""
    isq: str | None = DEFAULTS.isq
    """The type to quantize safetensors to while they are loaded, a key of ``quant.quantize.ISQ_TYPES``."""
    adapters: AdapterOptions = NO_ADAPTERS


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
        )

    @property
    def served(self) -> ServedModel:
        """Returns the data that preparing a request needs, as they are now."""
        return replace(self._served, adapters=self.adapters.known())

    @classmethod
    def load(cls, source: ModelSource, options: LoadOptions, *, progress: Progress | None = None) -> LocalModel:
        """Finds, checks and loads the model and its adapters. Raises ``LoadError`` or ``UsageError``."""
        started = time.perf_counter()
        _prepare_process()
        from mistralrs.api.adapter_loading import AdapterLoading
        from mistralrs.api.adapter_sources import base_name, resolve_adapters
        from mistralrs.loading.pipeline import load
        from mistralrs.ops.backend import resolve

        token = _token(options.token_source)
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
        plan = _plan(source, options, _text_source(options, token, progress), adapters)
        resolved = resolve("cpu", threads=options.threads, isa=options.isa)
        model = load(path, resolved.backend, plan, architecture=source.architecture, progress=progress)
        executor = adapters.executor(model, resolved.backend, is_exact=_is_exact(options))
        engine = _start_engine(executor, model, options, resolved.backend, adapters)
        # the folder of a model in the hub's cache is named by its commit
        name = source.repo if source.repo and path.is_dir() else model.name
        info = ModelInfo(
            name=name,
            architecture=model.architecture,
            quantization=model.quantization,
            context_length=engine.max_len,
            backend=resolved.backend.name,
            threads=resolved.backend.threads,
            parameters=model.parameters,
            file_bytes=model.file_bytes,
            kv_bytes=model.decoder.kv_bytes,
            load_s=time.perf_counter() - started,
            unavailable_backends=resolved.unavailable_backends,
        )
        try:
            placement = _placement(model, options, resolved.backend) if adapters.slots else None
            return cls(model, engine, info, adapters.finish(model, engine, placement, name=name))
        except BaseException:
            engine.close()
            raise

    def tokens_of(self, messages: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
        """Returns the prompt that ``chat`` makes of the messages, however long it is.

        Raises ``RequestError``, also when there is no chat template, and ``ContextLengthError`` for messages that are
        far too long. Ctrl-C ends it.
        """
        self.require_process()
        from mistralrs.api.serving.engine_requests import conversation_tokens, plain_conversation

        policy = Policy(self.info.name)
        return conversation_tokens(plain_conversation(messages, self.served, policy), self.served, policy).ids

    def count(self, messages: Sequence[Mapping[str, object]]) -> int:
        """Returns the number of prompt tokens that ``chat`` would send. Raises as ``tokens_of`` does."""
        return len(self.tokens_of(messages))

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
    ) -> Stream:
        """Answers a conversation; ``truncate`` drops the beginning of one that is too long. ``adapters``: names and
        weights of those that act; None: the default ones.

        Raises ``RequestError`` and ``ContextLengthError`` at once. Ctrl-C ends it.
        """
        self.require_process()
        from mistralrs.api.serving.engine_requests import chat_request

        policy = Policy(self.info.name, truncate=truncate)
        return self.adapters.submit(chat_request(messages, sampling, self.served, policy), adapters)

    def complete(
        self, prompt: Sequence[int], sampling: SamplingParams, *, adapters: Mapping[str, float] | None = None
    ) -> Stream:
        """Continues token ids; ``adapters`` as for ``chat``. Raises ``RequestError`` and ``ContextLengthError`` at
        once."""
        self.require_process()
        from mistralrs.api.serving.engine_requests import ids_request

        request = ids_request(prompt, sampling, self.served, Policy(self.info.name))
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


def _plan(source: ModelSource, options: LoadOptions, text: TextSource, adapters: AdapterLoading) -> LoadPlan:
    from mistralrs.loading.pipeline import LoadPlan

    return LoadPlan(
        max_seqs=options.max_seqs,
        max_batch_tokens=options.max_batch_tokens,
        # --dtype f32 asks for float32 throughout; the weights are exact in any case
        precision="f32" if options.dtype == "f32" else options.precision,
        text=text,
        dtype=options.dtype,
        isq=options.isq,
        gqa=source.gqa,
        kv_memory=options.kv_memory,
        max_model_len=options.max_model_len,
        keeps_kv=_keeps_kv(options),
        adapter_slots=adapters.slots,
        merge=adapters.read if options.adapters.adapters else None,
        mixture=adapters.read_mixture if adapters.is_mixture else None,
    )


def _start_engine(
    executor: ModelExecutor, model: Model, options: LoadOptions, backend: Backend, adapters: AdapterLoading
) -> Engine:
    from mistralrs.engine.engine import Engine
    from mistralrs.engine.kv.kv_disk_tier import KvDiskTier

    store = None
    if options.kv_dir is not None and model.fingerprint is not None:
        store = KvDiskTier(options.kv_dir, limit=options.kv_dir_bytes, fingerprint=model.fingerprint)
    num_blocks = sum(group.num_blocks for group in model.limits.kv_groups)
    return Engine(
        executor,
        model.tokenizer,
        EngineConfig(
            kv_groups=model.limits.kv_groups,
            max_model_len=model.max_model_len,
            max_seqs=options.max_seqs,
            max_queue=options.max_queue,
            max_batch_tokens=options.max_batch_tokens,
            max_prompt_logits=model.limits.max_logits - options.max_seqs,
            block_size=model.limits.block_size,
            prefix_cache_n=options.prefix_cache_n,
            max_evictable_blocks=EVICTABLE_BYTES * num_blocks // max(model.decoder.kv_bytes, 1),
            no_kv_cache=options.no_kv_cache,
            max_draft=_max_draft(options, backend),
            max_adapters=adapters.slots,
            shared_answer_tokens=options.adapters.non_granular_index,
        ),
        disk_tier=store,
        torch_threads=backend.torch_threads,
    )


def _placement(model: Model, options: LoadOptions, backend: Backend) -> AdapterPlacement:
    from mistralrs.adapters.adapter_placement import AdapterPlacement

    return AdapterPlacement(model.decoder, backend, in_half_precision=not _is_exact(options))


def _is_exact(options: LoadOptions) -> bool:
    """Whether adapters that are stored in float32 stay so."""
    return options.dtype == "f32" or options.precision == "high"


def _prepare_process() -> None:
    """Begins what takes time and needs no model."""
    import_torch_without_working_folder()
    workers.start()  # the template's process gets ready meanwhile
    # torch is not needed until the first token is drawn: it is imported while files are read and packed
    threading.Thread(target=importlib.import_module, args=("torch",), name="import-torch", daemon=True).start()


def _keeps_kv(options: LoadOptions) -> bool:
    return options.kv_dir is not None and options.prefix_cache_n > 0 and not options.no_kv_cache


def _max_draft(options: LoadOptions, backend: Backend) -> int:
    if options.max_draft is not None:
        return options.max_draft
    return MAX_DRAFT if backend.batch_invariant else 0


def _token(source: str) -> Callable[[], str | None]:
    """Returns the hub token, read when it is needed: a malformed source is an error even when nothing is fetched."""
    from mistralrs.loading.token_source import token

    if source == "cache":  # costs an import of the hub client
        return lambda: token(source)
    value = token(source)
    return lambda: value


def locate(source: ModelSource, *, token_source: str = "cache", progress: Progress | None = None) -> Path:
    """Returns the file or folder of a model, downloaded if need be. Raises ``LoadError`` and ``UsageError``."""
    return _find(source, _token(token_source), progress)


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
