"""The plan by which a model is loaded, and the engine that is started for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.engine.config import EngineConfig

if TYPE_CHECKING:
    from mistralrs.adapters.adapter_placement import AdapterPlacement
    from mistralrs.api.loaded_adapters.adapter_loading import AdapterLoading
    from mistralrs.engine.draft_model import ModelToDraft
    from mistralrs.engine.engine import Engine
    from mistralrs.engine.model_executor import ModelExecutor
    from mistralrs.engine.request_hooks import NamedHooks
    from mistralrs.loading.draft_needs import DraftNeeds
    from mistralrs.loading.pipeline import LoadPlan, Model
    from mistralrs.loading.text_source import TextSource
    from mistralrs.ops.backend import Backend

MAX_DRAFT = 15
"""The default of ``LoadOptions.max_draft``: with the committed token, two tiles of the kernels."""

EVICTABLE_BYTES = 512 << 20
"""Older sequences beyond ``prefix_cache_n`` whose KV stays until its memory is needed."""


def load_plan(
    source: ModelSource,
    options: LoadOptions,
    text: TextSource,
    adapters: AdapterLoading,
    *,
    draft: DraftNeeds | None = None,
) -> LoadPlan:
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
        kv_cache_dtype=options.kv_cache_dtype,
        max_model_len=options.max_model_len,
        in_place=options.no_pack,
        draft=draft,
        keeps_kv=_keeps_kv(options),
        adapter_slots=adapters.slots,
        adapter_bytes=partial(adapters.memory, is_exact=is_exact(options)),
        merge=adapters.read if options.adapters.adapters else None,
        mixture=adapters.read_mixture if adapters.is_mixture else None,
    )


def start_engine(
    executor: ModelExecutor,
    model: Model,
    options: LoadOptions,
    backend: Backend,
    adapters: AdapterLoading,
    *,
    named_hooks: NamedHooks,
    draft_model: ModelToDraft | None = None,
) -> Engine:
    from mistralrs.engine.engine import Engine
    from mistralrs.engine.kv.kv_disk_tier import KvDiskTier
    from mistralrs.ops.backend import usable_cpus

    store = None
    if options.kv_dir is not None and model.fingerprint is not None:
        store = KvDiskTier(options.kv_dir, limit=options.kv_dir_bytes, fingerprint=model.fingerprint)
    num_blocks = sum(group.num_blocks for group in model.limits.kv_groups)
    engine = Engine(
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
            weighs_drafts=True,
            max_adapters=adapters.slots,
            shared_answer_tokens=options.adapters.non_granular_index,
        ),
        draft_model=draft_model,
        disk_tier=store,
        row_sampler=backend.row_sampler(),
        torch_threads=backend.torch_threads,
        # where all compute, another thread would wait for one of them, and its events with it
        delivers_beside=backend.threads < usable_cpus(),
    )
    engine.named_hooks = named_hooks
    return engine


def adapter_placement(model: Model, options: LoadOptions, backend: Backend) -> AdapterPlacement:
    from mistralrs.adapters.adapter_placement import AdapterPlacement

    return AdapterPlacement(model.decoder, backend, in_half_precision=not is_exact(options))


def is_exact(options: LoadOptions) -> bool:
    """Whether adapters that are stored in float32 stay so."""
    return options.dtype == "f32" or options.precision == "high"


def _keeps_kv(options: LoadOptions) -> bool:
    return options.kv_dir is not None and options.prefix_cache_n > 0 and not options.no_kv_cache


def _max_draft(options: LoadOptions, backend: Backend) -> int:
    if options.max_draft is not None:
        return options.max_draft
    return MAX_DRAFT if backend.batch_invariant or options.draft_model is not None else 0
