"""Loads a model from a file or folder: spec, tokenizer, chat template, memory plan and weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from mistralrs.errors import LoadError
from mistralrs.loading.architecture_lookup import (
    gguf_mapping_of,
    hugging_face_mapping,
    kind_of,
    naming,
    read_spec,
    wrong_architecture,
)
from mistralrs.loading.checkpoint import Checkpoint, DescribedCheckpoint
from mistralrs.loading.checkpoint_parts import CheckpointParts, count_parameters, untied
from mistralrs.loading.convert import Conversion, Dtype, storage_label
from mistralrs.loading.draft_needs import DraftNeeds
from mistralrs.loading.fingerprint import ContentHashing, fingerprint
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.kv_budget import does_not_fit, kv_groups
from mistralrs.loading.kv_dtype import ChosenKvDtype, kv_dtype
from mistralrs.loading.model_metadata import GgufMetadata, HfMetadata, read_text_config
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.loading.sampling_defaults import folder_sampling, gguf_sampling
from mistralrs.loading.text_source import TextSource
from mistralrs.loading.vocabulary_check import check_vocabulary
from mistralrs.models.architecture import ModelMetadata, WeightsMapping
from mistralrs.models.decoder import PRECISIONS, Decoder, Limits, build_decoder
from mistralrs.models.parts import AdapterMixture, WeightMerge
from mistralrs.models.registry import ARCHITECTURES
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend, KvDtype
from mistralrs.ops.memory import available_bytes
from mistralrs.progress import Progress
from mistralrs.quant.quantize import isq_type
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.response.response_template import ResponseTemplate
from mistralrs.text.tokenizer import Tokenizer

Meanwhile = TypeVar("Meanwhile")

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16
_LEAST_CONTEXT = 8 * BLOCK_SIZE
_LOGIT_ROWS = 64
"""Prompt positions whose logits a step can return, in addition to one position of each sequence."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model and its description."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None
    spec: DecoderSpec
    limits: Limits
    architecture: str
    name: str
    quantization: str
    file_bytes: int
    parameters: int
    max_model_len: int
    fingerprint: str | None
    """A hash of all that a KV block's content depends on beside its tokens; None if not ``LoadPlan.keeps_kv``."""
    responses: ResponseTemplate | None
    """The template of its answers; None if they have no parts that are known."""
    sampling: Mapping[str, float]
    """The parameters that its makers recommend, by the names of ``SamplingParams``; their ranges are not checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """The caller's options."""

    max_seqs: int
    max_batch_tokens: int
    precision: str = "default"
    """A key of ``models.decoder.PRECISIONS``."""
    text: TextSource = field(default_factory=TextSource)
    """The source of tokenizer and template, if it is not the model's own file."""
    dtype: Dtype = "auto"
    """The type of weights that are stored as floats."""
    isq: str | None = None
    """The type to quantize safetensors to, a key of ``quant.quantize.ISQ_TYPES``."""
    gqa: int = 1
    """Query heads that share a KV head, a number that GGML files lack."""
    kv_memory: int | None = None
    """Bytes of the KV cache, at most; None: half of the memory that the weights leave free."""
    kv_cache_dtype: ChosenKvDtype = "auto"
    """The dtype of keys and values."""
    max_model_len: int | None = None
    """Tokens of context, at most; None: the context that the model was made for."""
    in_place: bool = False
    """Whether weights stay in the mapped file, so that no copy of them takes memory."""
    adapter_slots: int = 0
    """Adapters that can be in memory at once."""
    adapter_bytes: Callable[[DecoderSpec, Backend], int] | None = None
    """Gives the bytes that the adapters of a model of this spec take on the backend, at most; they are left to them.
    It is called after ``merge`` and ``mixture``. None: 0."""
    draft: DraftNeeds | None = None
    """A draft model that is loaded afterwards: its tokens are compared, and memory is left to it."""
    keeps_kv: bool = False
    """KV is kept beyond the process. The model then needs a fingerprint, for which its files are hashed."""
    merge: Callable[[str, DecoderSpec], WeightMerge | None] | None = None
    """Makes what is merged into the weights of a model of this architecture and spec; None: nothing is. It is called
    before weights are placed."""
    mixture: Callable[[str, DecoderSpec], AdapterMixture] | None = None
    """Makes the adapters of which each token gets a mixture (X-LoRA), for a model of this architecture and spec. They
    are the only ones: the model has a slot for each, whatever ``adapter_slots`` says. None: there are none."""


def load(
    path: Path,
    backend: Backend,
    plan: LoadPlan,
    *,
    architecture: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Loads the model at ``path``: a folder or file of safetensors, a GGUF or a legacy GGML file.

    ``architecture``: the name in ``ARCHITECTURES`` that it must have; None for any supported one.
    Raises ``LoadError`` and ``FormatError``; nothing large is allocated before the checks of all sizes have passed.
    The tokenizer and the template are read while the weights are packed.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        return load_folder(path, backend, plan, architecture=architecture, progress=progress)
    if plan.isq is not None:
        reason = f"{path} is a {kind.upper()} file, whose weights stay as they are"
        raise LoadError(reason, hint="--isq is for models that are stored as safetensors")
    load_file = load_ggml if kind == "ggml" else load_gguf
    return load_file(path, backend, plan, architecture=architecture, progress=progress)


def load_ggml(
    path: Path,
    backend: Backend,
    plan: LoadPlan,
    *,
    architecture: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Loads a legacy GGML file, which has a Llama model. Otherwise like ``load_gguf``."""
    form = ARCHITECTURES["llama"].ggml
    assert form is not None
    if architecture not in (None, "llama"):
        raise wrong_architecture(path, "'llama'", architecture, "llama-ggml -m '' -f")
    with GgmlFile.open(path, gqa=plan.gqa) as file:
        return _load_described(file, "llama", form, backend, plan, progress)


def load_gguf(
    path: Path,
    backend: Backend,
    plan: LoadPlan,
    *,
    architecture: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Loads a GGUF file. ``architecture``: the name in ``ARCHITECTURES`` that it must have; None for any supported one.

    Raises ``LoadError`` and ``FormatError`` as ``load`` does.
    """
    with GgufFile.open(path) as file:
        found, form = gguf_mapping_of(file, architecture)
        return _load_described(file, found, form, backend, plan, progress)


def _load_described(
    file: DescribedCheckpoint,
    architecture: str,
    form: WeightsMapping,
    backend: Backend,
    plan: LoadPlan,
    progress: Progress | None,
) -> Model:
    spec = _spec_for(file.path, form, GgufMetadata(file), plan)

    def read_text() -> tuple[Tokenizer, ChatTemplate | None]:
        return _text(file, plan, spec, builtin=ARCHITECTURES[architecture].template)

    placed, (tokenizer, template) = _place(file, architecture, form, spec, backend, plan, progress, read_text)
    name = file.get("general.name", str, default=file.path.stem)
    return _model(
        file, placed, tokenizer, template, spec, architecture, name, plan, sampling=gguf_sampling(file.metadata)
    )


def _model(
    checkpoint: Checkpoint,
    placed: _Placed,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    spec: DecoderSpec,
    architecture: str,
    name: str,
    plan: LoadPlan,
    *,
    sampling: Mapping[str, float],
    place: str | None = None,
) -> Model:
    return Model(
        decoder=placed.decoder,
        tokenizer=tokenizer,
        template=template,
        spec=spec,
        limits=placed.limits,
        architecture=architecture,
        name=name,
        quantization=storage_label(checkpoint.tensors.values(), plan.dtype, plan.isq),
        file_bytes=checkpoint.file_bytes,
        parameters=count_parameters(checkpoint),
        max_model_len=min(placed.limits.max_blocks * BLOCK_SIZE, spec.max_position),
        fingerprint=placed.fingerprint,
        responses=plan.text.responses(template, place=place),
        sampling=sampling,
    )


def load_folder(
    path: Path,
    backend: Backend,
    plan: LoadPlan,
    *,
    architecture: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Loads safetensors: a Hugging Face folder, or one file or index in it. Otherwise like ``load_gguf``."""
    folder = path if path.is_dir() else path.parent
    with SafetensorsFile.open(path) as file:
        config = read_text_config(file, folder / "config.json")
        found, form = hugging_face_mapping(path, config, architecture)
        spec = _spec_for(path, form, HfMetadata(file, folder / "config.json", config), plan)

        def read_text() -> tuple[Tokenizer, ChatTemplate | None]:
            tokenizer, template = plan.text.for_model(str(folder), builtin=ARCHITECTURES[found].template)
            _check_text(path, tokenizer, spec, plan)
            return tokenizer, template

        placed, (tokenizer, template) = _place(file, found, form, spec, backend, plan, progress, read_text)
        name = folder.resolve().name
        sampling = folder_sampling(folder)
        return _model(file, placed, tokenizer, template, spec, found, name, plan, sampling=sampling, place=str(folder))


def _spec_for(path: Path, form: WeightsMapping, facts: ModelMetadata, plan: LoadPlan) -> DecoderSpec:
    """Returns the decoder's spec for the context that the plan requests."""
    given = read_spec(path, form, facts)
    spec, long, wanted = given.for_context(plan.max_model_len), given.long_context, plan.max_model_len
    if wanted is not None and wanted > spec.max_position:
        logger.warning("the context ends at %d tokens: the model was made for no more", spec.max_position)
    elif wanted is None and long is not None:
        reason = "the context ends at %d tokens: --max-model-len takes the model's long factors for up to %d"
        logger.warning(reason, spec.max_position, long.max_position)
    return spec


def _text(
    file: DescribedCheckpoint, plan: LoadPlan, spec: DecoderSpec, *, builtin: str | None
) -> tuple[Tokenizer, ChatTemplate | None]:
    with naming(file.path) if plan.text.own_tokenizer else nullcontext():
        tokenizer = plan.text.tokenizer(file.metadata)
    _check_text(file.path, tokenizer, spec, plan)
    own = file.get("tokenizer.chat_template", str, default=None)
    with naming(file.path) if plan.text.chat_template is None else nullcontext():
        return tokenizer, plan.text.template(own, tokenizer, builtin=builtin)


def _check_text(path: Path, tokenizer: Tokenizer, spec: DecoderSpec, plan: LoadPlan) -> None:
    """Raises ``LoadError`` for a tokenizer that does not fit the model, or a draft model with other tokens."""
    check_vocabulary(path, tokenizer, spec)
    if plan.draft is not None:
        plan.draft.check_tokens(path, tokenizer, spec)


class _Placed(NamedTuple):
    decoder: Decoder
    limits: Limits
    fingerprint: str | None


def _place(
    checkpoint: Checkpoint,
    architecture: str,
    form: WeightsMapping,
    spec: DecoderSpec,
    backend: Backend,
    plan: LoadPlan,
    progress: Progress | None,
    meanwhile: Callable[[], Meanwhile],
) -> tuple[_Placed, Meanwhile]:
    """Checks all parts, plans the memory and places the weights; hashes the files meanwhile if the plan requires it,
    and calls ``meanwhile``, whose result it returns too."""
    report = (lambda done, total: progress("weights", done, total)) if progress else None
    conversion = Conversion(plan.dtype, isq_type(plan.isq) if plan.isq else None)
    merge = None if plan.merge is None else plan.merge(architecture, spec)
    if merge is not None and merge.unties_head:
        form, spec = untied(form, spec)
    mixture = None if plan.mixture is None else plan.mixture(architecture, spec)
    with (
        ContentHashing(checkpoint.files if plan.keeps_kv else ()) as hashing,
        backend.packing() or nullcontext() as packing,
    ):
        with naming(checkpoint.path):
            parts = CheckpointParts(
                checkpoint,
                form,
                spec,
                backend,
                conversion=conversion,
                merge=merge,
                progress=report,
                in_place=plan.in_place,
                packing=packing,
            )
            limits = _plan_memory(spec, plan, backend, parts, mixture)
            backend.reserve(parts.placed_bytes)
            layers = {} if mixture is None else mixture.scaling_layers
            precision = PRECISIONS[plan.precision]
            decoder = build_decoder(spec, parts, backend, limits, precision=precision, scaling_layers=layers)
        other = meanwhile()
        with naming(checkpoint.path):
            parts.wait()
        if not plan.keeps_kv:
            return _Placed(decoder, limits, None), other
        facts = (spec, plan.precision, plan.dtype, plan.isq, BLOCK_SIZE, limits.kv_dtype, backend.results)
        added = (() if merge is None else (merge.digest,)) + (() if mixture is None else ("mixture", mixture.digest))
        with naming(checkpoint.path):
            return _Placed(decoder, limits, fingerprint(checkpoint, hashing.result(), *facts, *added)), other


def _plan_memory(
    spec: DecoderSpec, plan: LoadPlan, backend: Backend, parts: CheckpointParts, mixture: AdapterMixture | None
) -> Limits:
    """Returns the limits, with a KV cache of at most half of the memory that weights and adapters leave; it is
    committed as it fills.

    Raises ``LoadError`` if weights, adapters and a draft model do not fit.
    """
    if spec.max_position < 1:
        raise LoadError(f"a context of {spec.max_position} tokens is none", hint="the file is damaged; fetch it again")
    free, step = available_bytes(), plan.max_batch_tokens
    draft = 0 if plan.draft is None else plan.draft.weights
    adapters = 0 if plan.adapter_bytes is None else plan.adapter_bytes(spec, backend)
    left = free - parts.placed_bytes - adapters - draft
    dtype = kv_dtype(plan.kv_cache_dtype, spec, backend, precision=plan.precision)
    groups = kv_groups(
        spec,
        _kv_bytes(spec, plan, dtype, left=left, mapped=parts.in_place_bytes),
        dtype=dtype,
        max_seqs=plan.max_seqs,
        step=step,
        block_size=BLOCK_SIZE,
        caches=1 if mixture is None else 2,
    )
    context = min(group.max_context(spec.max_position, step=step, block_size=BLOCK_SIZE) for group in groups)
    if context < min(spec.max_position, _LEAST_CONTEXT):
        if plan.kv_memory is not None and plan.kv_memory < left // 2:
            held = f"{plan.kv_memory / 2**20:.1f} MiB of KV cache hold {context} tokens of context"
            raise LoadError(held, hint="raise --kv-memory")
        raise does_not_fit(parts.placed_bytes, adapters, free, draft=draft, is_copied=not plan.in_place)
    if context < spec.max_position:
        others = f" beside {adapters / 2**20:.0f} MiB of adapters" if adapters else ""
        logger.warning("memory for %d tokens of context%s; the model allows %d", context, others, spec.max_position)
    return Limits(
        max_tokens=step,
        max_seqs=plan.max_seqs,
        max_logits=plan.max_seqs + _LOGIT_ROWS,
        kv_groups=groups,
        block_size=BLOCK_SIZE,
        max_blocks=-(-context // BLOCK_SIZE),
        kv_dtype=dtype,
        adapter_slots=plan.adapter_slots if mixture is None else mixture.num_adapters,
        scaling_layers=0 if mixture is None else mixture.num_layers,
    )


def _kv_bytes(spec: DecoderSpec, plan: LoadPlan, dtype: KvDtype, *, left: int, mapped: int) -> int:
    """Bytes of the KV cache without that of a draft model. Weights in their file keep room, but no more than leaves an
    eighth of ``left``."""
    budget = max(left - mapped, left // 4) // 2 if plan.kv_memory is None else min(plan.kv_memory, left)
    if plan.draft is not None:
        budget -= plan.draft.kv_share(budget, spec, kv_dtype=dtype)
    return budget
