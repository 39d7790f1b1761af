"""Loads a draft model beside its target: looks at its needs first, and takes its memory last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.progress import Progress

if TYPE_CHECKING:
    from mistralrs.engine.draft_model import ModelToDraft
    from mistralrs.loading.draft_needs import DraftNeeds
    from mistralrs.loading.pipeline import Model
    from mistralrs.ops.backend import Backend


def draft_needs(
    options: LoadOptions,
    backend: Backend,
    *,
    find: Callable[[ModelSource], Path],
) -> DraftNeeds | None:
    """Returns what the draft model of the options needs; None: there is none. ``find`` returns a model's path.

    Raises ``LoadError`` for one that could not be loaded.
    """
    if options.draft_model is None:
        return None
    from mistralrs.loading.checkpoint_parts import CheckpointParts
    from mistralrs.loading.convert import Conversion
    from mistralrs.loading.describe import opened
    from mistralrs.loading.draft_needs import DraftNeeds
    from mistralrs.loading.kv_dtype import kv_dtype

    path = find(options.draft_model)
    with opened(path) as model:
        parts = CheckpointParts(
            model.checkpoint,
            model.mapping,
            model.spec,
            backend,
            conversion=Conversion(options.dtype),
            in_place=options.no_pack,
        )
        dtype = kv_dtype(options.kv_cache_dtype, model.spec, backend, precision=draft_precision(options))
        return DraftNeeds(path, model.spec, model.tokenizer, parts.placed_bytes, dtype)


def load_draft(
    needs: DraftNeeds, target: Model, options: LoadOptions, backend: Backend, *, progress: Progress | None
) -> ModelToDraft:
    """Returns the draft model, placed. Raises ``LoadError``."""
    from mistralrs.engine.config import EngineConfig
    from mistralrs.engine.draft_model import ModelToDraft
    from mistralrs.engine.model_runner import ModelRunner
    from mistralrs.loading.draft_needs import MAX_SEQS, MAX_STEP
    from mistralrs.loading.kv_dtype import kv_token_bytes
    from mistralrs.loading.pipeline import LoadPlan, load

    context = min(needs.context(target.spec), target.max_model_len)
    own = kv_token_bytes(needs.spec, needs.kv_dtype)
    other = kv_token_bytes(target.spec, target.limits.kv_dtype)
    plan = LoadPlan(
        max_seqs=MAX_SEQS,
        max_batch_tokens=MAX_STEP,
        precision=draft_precision(options),
        dtype=options.dtype,
        kv_cache_dtype=options.kv_cache_dtype,
        kv_memory=max(min(target.decoder.kv_bytes * own // other, MAX_SEQS * context * own), 1),
        max_model_len=context,
        in_place=options.no_pack,
    )
    model = load(needs.path, backend, plan, progress=progress)
    config = EngineConfig(
        kv_groups=model.limits.kv_groups,
        max_model_len=model.max_model_len,
        max_seqs=MAX_SEQS,
        max_batch_tokens=MAX_STEP,
        block_size=model.limits.block_size,
        prefix_cache_n=options.prefix_cache_n,
    )
    return ModelToDraft(ModelRunner(model.decoder, vocab_size=model.spec.vocab_size), config)


def draft_precision(options: LoadOptions) -> str:
    """Returns the precision of the draft model, a key of ``models.decoder.PRECISIONS``: the target's."""
    return "f32" if options.dtype == "f32" else options.precision
