"""Loads a model from a file or folder: spec, tokenizer, chat template, memory plan and weights."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from mistralrs.errors import LoadError
from mistralrs.loading.checkpoint import Checkpoint, DescribedCheckpoint
from mistralrs.loading.checkpoint_parts import CheckpointParts, count_parameters
from mistralrs.loading.convert import Conversion, Dtype
from mistralrs.loading.fingerprint import ContentHashing, fingerprint
from mistralrs.loading.ggml_file import MAGICS as GGML_MAGICS
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.kv_budget import kv_groups
from mistralrs.loading.model_metadata import GgufMetadata, HfMetadata, read_text_config
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.loading.text_source import TextSource
from mistralrs.models.architecture import ModelMetadata, WeightsMapping
from mistralrs.models.decoder import PRECISIONS, Decoder, Limits, build_decoder
from mistralrs.models.multimodal import TEXT_TYPES
from mistralrs.models.registry import ARCHITECTURES, GGUF_NAMES, GGUF_OTHER_NAMES, HF_MODEL_TYPES
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend
from mistralrs.ops.memory import available_bytes
from mistralrs.progress import Progress
from mistralrs.quant.quantize import isq_type
from mistralrs.quant.types import DECODED, EXPANDED
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.tokenizer import Tokenizer

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
    """The fingerprint of all that decides the content of a KV block beside its tokens; None if not
    ``LoadPlan.keeps_kv``."""


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
    max_model_len: int | None = None
    """Tokens of context, at most; None: the context that the model was made for."""
    adapter_slots: int = 0
    """Adapters that can be in memory at once."""
    keeps_kv: bool = False
    """Whether KV is kept beyond the process. The model then needs a fingerprint, for which its files are hashed."""


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
    Raises ``LoadError`` and ``FormatError``; nothing large is allocated before all checks have passed.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        return load_folder(path, backend, plan, architecture=architecture, progress=progress)
    if plan.isq is not None:
        reason = f"{path} is a {kind.upper()} file, whose weights stay as they are"
        raise LoadError(reason, hint="--isq is for models that are stored as safetensors")
    load_file = load_ggml if kind == "ggml" else load_gguf
    return load_file(path, backend, plan, architecture=architecture, progress=progress)


def kind_of(path: Path) -> Literal["safetensors", "gguf", "ggml"]:
    """The format, by the file's first bytes; a folder is safetensors. The GGUF reader refuses unknown files."""
    if path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json")):
        return "safetensors"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError:
        return "gguf"
    return "ggml" if magic in GGML_MAGICS else "gguf"


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
        raise _wrong_architecture(path, "'llama'", architecture, "llama-ggml -m '' -f")
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

    Raises ``LoadError`` and ``FormatError``; nothing large is allocated before all checks have passed.
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
    tokenizer, template = _text(file, plan, spec, builtin=ARCHITECTURES[architecture].template)
    placed = _place(file, form, spec, backend, plan, progress)
    name = file.get("general.name", str, default=file.path.stem)
    return _model(file, placed, tokenizer, template, spec, architecture, name, plan)


def _model(
    checkpoint: Checkpoint,
    placed: _Placed,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    spec: DecoderSpec,
    architecture: str,
    name: str,
    plan: LoadPlan,
) -> Model:
    return Model(
        decoder=placed.decoder,
        tokenizer=tokenizer,
        template=template,
        spec=spec,
        limits=placed.limits,
        architecture=architecture,
        name=name,
        quantization=_storage(checkpoint, plan),
        file_bytes=checkpoint.file_bytes,
        parameters=count_parameters(checkpoint),
        max_model_len=min(placed.limits.max_blocks * BLOCK_SIZE, spec.max_position),
        fingerprint=placed.fingerprint,
    )


def _storage(checkpoint: Checkpoint, plan: LoadPlan) -> str:
    """The type of most matrices, and the type that they are computed in if it differs."""
    types = [tensor.type for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1]
    stored = max(sorted(set(types), key=lambda type_: type_.name), key=types.count)
    if plan.isq is not None:
        return f"{stored.name} quantized to {plan.isq.upper()}"
    if stored.name in EXPANDED:
        return f"{stored.name} computed in 8 bits without loss"
    if stored.name in DECODED:
        return f"{stored.name} decoded to F32"
    if stored.name in ("F32", "F16", "BF16") and plan.dtype in ("bf16", "f16") and plan.dtype.upper() != stored.name:
        return f"{stored.name} as {plan.dtype.upper()}"
    return stored.name


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
        tokenizer, template = plan.text.for_model(str(folder), builtin=ARCHITECTURES[found].template)
        check_vocabulary(path, tokenizer, spec)
        placed = _place(file, form, spec, backend, plan, progress)
        return _model(file, placed, tokenizer, template, spec, found, folder.resolve().name, plan)


def hugging_face_mapping(path: Path, config: Mapping[str, object], expected: str | None) -> tuple[str, WeightsMapping]:
    """The folder's architecture and its mapping. Raises LoadError unless it is supported and the ``expected`` one."""
    kind = config.get("model_type")
    found = HF_MODEL_TYPES.get(kind) if isinstance(kind, str) else None
    form = ARCHITECTURES[found].hugging_face if found else None
    if found is None or form is None:
        raise _unsupported(path, kind, (*HF_MODEL_TYPES, *TEXT_TYPES))
    if expected is not None and expected != found:
        raise _wrong_architecture(path, repr(found), expected, f"{found} -m")
    return found, form


def gguf_mapping_of(file: GgufFile, expected: str | None) -> tuple[str, WeightsMapping]:
    """The file's architecture and its mapping. Raises LoadError unless it is supported and the ``expected`` one."""
    found = file.require("general.architecture", str)
    if found == "clip":
        raise LoadError(
            f"{file.path} holds the vision part of a multimodal model",
            hint="give the file with its language model, which lies beside it; images are not read",
        )
    architecture, form = GGUF_OTHER_NAMES.get(found, (found, None))
    if form is None and found in ARCHITECTURES:
        form = ARCHITECTURES[found].gguf
    if form is None:
        known = (name for name, row in ARCHITECTURES.items() if row.gguf)
        raise _unsupported(file.path, found, (*known, *GGUF_OTHER_NAMES))
    if expected is not None:
        # Some architectures share a GGUF name with another and differ only by their experts.
        experts = file.get(f"{found}.expert_count", int, default=0) > 0
        if (architecture, experts) != (GGUF_NAMES[expected], ARCHITECTURES[expected].mixture):
            raise _wrong_architecture(file.path, f"{found!r}{' with experts' if experts else ''}", expected, "gguf -f")
    return architecture, form


def _unsupported(path: Path, found: object, supported: Iterable[str]) -> LoadError:
    return LoadError(
        f"{path} holds the architecture {found!r}, which is not supported yet",
        hint=f"supported: {', '.join(sorted(set(supported)))}",
    )


def _wrong_architecture(path: Path, found: str, expected: str, subcommand: str) -> LoadError:
    """The error for another architecture than requested; the hint runs it with ``subcommand``."""
    return LoadError(
        f"{path} holds the architecture {found}, not {expected!r}",
        hint=f"this command works: mistralrs -i {subcommand} {shlex.quote(str(path))}",
    )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to errors that lack it, and a hint to those without one."""
    try:
        yield
    except LoadError as error:
        if str(path) in error.message:
            raise
        hint = error.hint or "the model is damaged, or of a kind that is not supported yet: fetch it again, or another"
        raise LoadError(f"{path}: {error.message}", hint=hint) from error


def read_spec(path: Path, form: WeightsMapping, facts: ModelMetadata) -> DecoderSpec:
    """The spec of the decoder that the metadata describes."""
    with naming(path):
        return form.spec(facts)


def _spec_for(path: Path, form: WeightsMapping, facts: ModelMetadata, plan: LoadPlan) -> DecoderSpec:
    """The decoder for the context that the plan asks for."""
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
    check_vocabulary(file.path, tokenizer, spec)
    own = file.get("tokenizer.chat_template", str, default=None)
    with naming(file.path) if plan.text.chat_template is None else nullcontext():
        return tokenizer, plan.text.template(own, tokenizer, builtin=builtin)


def check_vocabulary(path: Path, tokenizer: Tokenizer, spec: DecoderSpec) -> None:
    """Raises ``LoadError`` if ordinary text could become tokens that have no row in the embedding.

    Added tokens may lack a row, such as the token for images in a model for text: they are never sampled, and a prompt
    with one is refused by name.
    """
    rows = spec.vocab_size
    if not 0 < rows < tokenizer.vocab_size:  # 0: there is no embedding, which a later check reports
        return
    num_text_tokens = tokenizer.num_text_tokens_beyond(rows)
    if num_text_tokens:
        raise LoadError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model knows {rows}; "
            f"{num_text_tokens} of the others are words or pieces of words",
            hint="the tokenizer belongs to another model",
        )
    if tokenizer.eos_ids and min(tokenizer.eos_ids) >= rows:
        logger.warning("the model has no embedding for the tokens that end an answer, so none ends before its limit")


class _Placed(NamedTuple):
    decoder: Decoder
    limits: Limits
    fingerprint: str | None


def _place(
    checkpoint: Checkpoint,
    form: WeightsMapping,
    spec: DecoderSpec,
    backend: Backend,
    plan: LoadPlan,
    progress: Progress | None,
) -> _Placed:
    """Checks all parts, plans the memory and places the weights; meanwhile hashes the files if the plan requires it."""
    report = (lambda done, total: progress("weights", done, total)) if progress else None
    conversion = Conversion(plan.dtype, isq_type(plan.isq) if plan.isq else None)
    with naming(checkpoint.path), ContentHashing(checkpoint.files if plan.keeps_kv else ()) as hashing:
        parts = CheckpointParts(checkpoint, form, spec, backend, conversion=conversion, progress=report)
        limits = _plan_memory(spec, plan, parts.placed_bytes)
        backend.reserve(parts.placed_bytes)
        decoder = build_decoder(spec, parts, backend, limits, precision=PRECISIONS[plan.precision])
        if not plan.keeps_kv:
            return _Placed(decoder, limits, None)
        facts = (spec, plan.precision, plan.dtype, plan.isq, BLOCK_SIZE, backend.results)
        return _Placed(decoder, limits, fingerprint(checkpoint, hashing.result(), *facts))


def _plan_memory(spec: DecoderSpec, plan: LoadPlan, weights: int) -> Limits:
    """The limits, with a KV cache of at most half of the memory that the weights leave; it is committed as it fills.

    Raises ``LoadError`` if the weights do not fit.
    """
    if spec.max_position < 1:
        raise LoadError(f"a context of {spec.max_position} tokens is none", hint="the file is damaged; fetch it again")
    left = available_bytes() - weights
    step = plan.max_batch_tokens
    groups = kv_groups(
        spec,
        left // 2 if plan.kv_memory is None else min(plan.kv_memory, left),
        item_bytes=4 if PRECISIONS[plan.precision].kv_dtype == "f32" else 2,
        max_seqs=plan.max_seqs,
        step=step,
        block_size=BLOCK_SIZE,
    )
    context = min(group.max_context(spec.max_position, step=step, block_size=BLOCK_SIZE) for group in groups)
    if context < min(spec.max_position, _LEAST_CONTEXT):
        if plan.kv_memory is not None and plan.kv_memory < left // 2:
            raise LoadError(
                f"{plan.kv_memory / 2**20:.1f} MiB of KV cache hold {context} tokens of context",
                hint="raise --kv-memory",
            )
        raise LoadError(
            f"the weights take {weights / 2**30:.1f} GiB, {(left + weights) / 2**30:.1f} GiB of memory are free",
            hint="use a smaller model or stronger quantization, or close other programs",
        )
    if context < spec.max_position:
        logger.warning("memory for %d tokens of context; the model allows %d", context, spec.max_position)
    return Limits(
        max_tokens=plan.max_batch_tokens,
        max_seqs=plan.max_seqs,
        max_logits=plan.max_seqs + _LOGIT_ROWS,
        kv_groups=groups,
        block_size=BLOCK_SIZE,
        max_blocks=-(-context // BLOCK_SIZE),
        adapter_slots=plan.adapter_slots,
    )
