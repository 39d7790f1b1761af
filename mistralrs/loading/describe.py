"""Describes a model without loading it: collects all that ``mistralrs inspect`` shows from headers and text files.

The files are checked as for loading, so a model that can be described is complete. Files with metadata of their own
need no torch if the kernels are installed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mistralrs.errors import RequestError
from mistralrs.loading.architecture_lookup import gguf_mapping_of, hugging_face_mapping, kind_of, naming, read_spec
from mistralrs.loading.checkpoint import Checkpoint, RawTensor
from mistralrs.loading.checkpoint_parts import CheckpointParts, count_parameters
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.kv_dtype import ChosenKvDtype, kv_dtype
from mistralrs.loading.model_metadata import GgufMetadata, HfMetadata, read_text_config
from mistralrs.loading.pipeline import BLOCK_SIZE
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.loading.sampling_defaults import folder_sampling, gguf_sampling
from mistralrs.loading.text_source import TextSource
from mistralrs.loading.vocabulary_check import check_vocabulary
from mistralrs.models.architecture import TensorRef, WeightsMapping
from mistralrs.models.parts import layer_shapes, part_shapes
from mistralrs.models.registry import ARCHITECTURES
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend, KvDtype, KvShape, resolve
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.tokenizer import Tokenizer

SAMPLE = (
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi! How can I help?"},
    {"role": "user", "content": "Tell me a joke."},
)
"""The conversation by which the chat template is shown."""

_TEXT_CLASSES = {"llama": "SentencePiece", "gpt2": "byte-level BPE"}
_CLASSES = {
    "embed_tokens": "embedding",
    "lm_head": "head",
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "o_proj": "attention",
}


@dataclass(frozen=True, slots=True)
class TensorClass:
    """The types in which tensors of one use are stored."""

    use: str
    """``embedding``, ``attention``, ``feed-forward``, ``norms``, ``head``, or ``other``."""
    types: tuple[tuple[str, int], ...]
    """Names of types with their numbers of tensors, the most frequent first."""
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class TextInfo:
    """The tokenizer, and the prompt that the chat template renders for ``SAMPLE``."""

    kind: str
    size: int
    bos: TokenInfo | None
    eos: tuple[TokenInfo, ...]
    adds_bos: bool
    sample: str | None
    """None if there is no template or it refuses the sample."""
    refusal: str | None
    """The reason why there is no sample, if there is a template."""
    answer_parts: tuple[str, ...]
    """The parts into which answers are split: ``content``, ``reasoning``, ``tool_calls``."""


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """A length of context in tokens, and the bytes of its KV."""

    tokens: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that the model needs when it runs, in bytes."""

    backend: str
    weights: int
    """Bytes of the weights as packed for the backend."""
    kv_per_1000_tokens: int
    """Tokens of context."""
    kv_dtype: KvDtype
    """The type of keys and values."""
    contexts: tuple[ContextMemory, ...]
    """The KV of one sequence for contexts that double, up to the model's own."""
    adapters: tuple[tuple[str, int], ...] = ()
    """Names of the adapters that were asked about, with the bytes that each takes beside the weights."""


AdapterSizes = Callable[[str, DecoderSpec, Backend], Iterable[tuple[str, int]]]
"""Gives names and bytes of adapters for a model of this architecture and spec on a backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The description of a model."""

    path: Path
    container: str
    """The file format, such as ``GGUF version 3``."""
    file_bytes: int
    architecture: str
    parameters: int
    context_length: int
    layers: int
    hidden_size: int
    ffn_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    experts: int
    """Number of experts; 0 without a mixture of experts."""
    experts_used: int
    windows: tuple[int, ...]
    """Lengths of the layers' sliding windows; empty if all layers have full attention."""
    tensors: tuple[TensorClass, ...]
    text: TextInfo
    memory: Memory
    sampling: Mapping[str, float]
    """The parameters that its makers recommend, by the names of ``SamplingParams``; empty if there are none."""


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A checkpoint that was opened and checked, with its texts."""

    checkpoint: Checkpoint
    container: str
    architecture: str
    mapping: WeightsMapping
    spec: DecoderSpec
    tokenizer_kind: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    sampling: Mapping[str, float]


def describe(
    path: Path,
    *,
    gqa: int = 1,
    adapters: AdapterSizes | None = None,
    kv_cache_dtype: ChosenKvDtype = "auto",
    precision: str = "default",
) -> Description:
    """The description of the model at ``path``: a folder or file of safetensors, a GGUF or a legacy GGML file.

    ``gqa``: query heads per KV head, a number that GGML files lack. ``adapters``: gives those to be run with it.
    ``kv_cache_dtype``, ``precision``: as in ``LoadPlan``. Raises ``LoadError`` and ``FormatError`` as loading it would.
    """
    backend = resolve("cpu", threads=1).backend
    with opened(path, gqa) as model:
        checkpoint, spec = model.checkpoint, model.spec
        parts = CheckpointParts(checkpoint, model.mapping, spec, backend)
        dtype = kv_dtype(kv_cache_dtype, spec, backend, precision=precision)
        sizes = () if adapters is None else tuple(adapters(model.architecture, spec, backend))
        return Description(
            path=path,
            container=model.container,
            file_bytes=checkpoint.file_bytes,
            architecture=model.architecture,
            parameters=count_parameters(checkpoint),
            context_length=spec.max_position,
            layers=len(spec.layers),
            hidden_size=spec.hidden_size,
            ffn_size=spec.ffn_size,
            heads=spec.attention.num_heads,
            kv_heads=spec.attention.kv_heads,
            head_dim=spec.attention.head_dim,
            vocab_size=spec.vocab_size,
            experts=spec.moe.experts if spec.moe else 0,
            experts_used=spec.moe.experts_used if spec.moe else 0,
            windows=tuple(sorted({layer.window for layer in spec.layers} - {0})),
            tensors=_tensor_classes(checkpoint, model.mapping, spec),
            text=_text_info(model),
            sampling=model.sampling,
            memory=Memory(
                backend.name,
                parts.placed_bytes,
                _kv_bytes(spec, backend, dtype, tokens=1000),
                dtype,
                _context_memory(spec, backend, dtype),
                sizes,
            ),
        )


@contextmanager
def opened(path: Path, gqa: int = 1) -> Iterator[OpenModel]:
    """Opens the model at ``path`` as for loading."""
    if kind_of(path) == "safetensors":
        with SafetensorsFile.open(path) as file:
            yield _open_folder(path, file)
    elif kind_of(path) == "ggml":
        form = ARCHITECTURES["llama"].ggml
        assert form is not None
        with GgmlFile.open(path, gqa=gqa) as ggml:
            yield _open_described(ggml, ggml.version, "llama", form)
    else:
        with GgufFile.open(path) as gguf:
            yield _open_described(gguf, f"GGUF version {gguf.version}", *gguf_mapping_of(gguf, None))


def _open_folder(path: Path, file: SafetensorsFile) -> OpenModel:
    folder = path if path.is_dir() else path.parent
    config = read_text_config(file, folder / "config.json")
    architecture, form = hugging_face_mapping(path, config, None)
    spec = read_spec(path, form, HfMetadata(file, folder / "config.json", config))
    tokenizer, template = TextSource().for_model(str(folder), builtin=ARCHITECTURES[architecture].template)
    check_vocabulary(path, tokenizer, spec)
    names = ("tokenizer.json", "tokenizer.model")
    kind = next(name for name in names if (folder / name).is_file())
    return OpenModel(file, "safetensors", architecture, form, spec, kind, tokenizer, template, folder_sampling(folder))


def _open_described(file: GgufFile | GgmlFile, container: str, architecture: str, form: WeightsMapping) -> OpenModel:
    spec = read_spec(file.path, form, GgufMetadata(file))
    source = TextSource()
    with naming(file.path):
        tokenizer = source.tokenizer(file.metadata)
        check_vocabulary(file.path, tokenizer, spec)
        own = file.get("tokenizer.chat_template", str, default=None)
        template = source.template(own, tokenizer, builtin=ARCHITECTURES[architecture].template)
    kind = file.require("tokenizer.ggml.model", str)
    before = file.get("tokenizer.ggml.pre", str, default=None)
    kind = _TEXT_CLASSES.get(kind, kind) + (f", split as {before}" if before else "")
    sampling = gguf_sampling(file.metadata)
    return OpenModel(file, container, architecture, form, spec, kind, tokenizer, template, sampling)


def _tensor_classes(checkpoint: Checkpoint, form: WeightsMapping, spec: DecoderSpec) -> tuple[TensorClass, ...]:
    uses = dict(_uses(form, spec))
    tensors: dict[str, list[RawTensor]] = {
        use: [] for use in ("embedding", "attention", "feed-forward", "norms", "head")
    }
    for name, tensor in checkpoint.tensors.items():
        stem = name.removesuffix(".bias")
        tensors.setdefault(uses.get(name) or uses.get(f"{stem}.weight") or "other", []).append(tensor)
    return tuple(_tensor_class(use, members) for use, members in tensors.items() if members)


def _tensor_class(use: str, tensors: Iterable[RawTensor]) -> TensorClass:
    counts: dict[str, int] = defaultdict(int)
    parameters = nbytes = 0
    for tensor in tensors:
        counts[tensor.type.name] += 1
        parameters += prod(tensor.shape)
        nbytes += len(tensor.data)
    types = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return TensorClass(use, tuple(types), parameters, nbytes)


def _uses(form: WeightsMapping, spec: DecoderSpec) -> Iterator[tuple[str, str]]:
    """The use of each tensor, by name."""
    pieces = form.tensors(spec)
    for part in part_shapes(spec) | layer_shapes(spec):
        use = "norms" if part.endswith("norm") else _CLASSES.get(part, "feed-forward")
        piece: TensorRef | None = pieces[part]
        while piece is not None:
            for layer in range(len(spec.layers)):
                for expert in range(spec.moe.experts if spec.moe else 1):
                    yield piece.name.format(layer=layer, expert=expert), use
            piece = piece.otherwise


def _text_info(model: OpenModel) -> TextInfo:
    tokenizer = model.tokenizer

    def token(id: int) -> TokenInfo:
        return TokenInfo(id, tokenizer.token_text(id))

    sample = refusal = None
    if model.template is not None:
        try:
            sample = model.template.render_any(SAMPLE)
        except RequestError as error:  # a refusal of the template is shown too
            refusal = error.message
    return TextInfo(
        kind=model.tokenizer_kind,
        size=tokenizer.vocab_size,
        bos=None if tokenizer.bos_id is None else token(tokenizer.bos_id),
        eos=tuple(token(id) for id in sorted(tokenizer.eos_ids)),
        adds_bos=tokenizer.add_bos,
        sample=sample,
        refusal=refusal,
        answer_parts=_answer_parts(model),
    )


def _answer_parts(model: OpenModel) -> tuple[str, ...]:
    path = model.checkpoint.path
    place = str(path if path.is_dir() else path.parent) if model.container == "safetensors" else None
    responses = TextSource().responses(model.template, place=place)
    regions = () if responses is None else responses.regions
    return tuple(dict.fromkeys(("content", *(region.part.value for region in regions))))


def _context_memory(spec: DecoderSpec, backend: Backend, dtype: KvDtype) -> tuple[ContextMemory, ...]:
    lengths = [1024]
    while lengths[-1] < spec.max_position:
        lengths.append(2 * lengths[-1])
    lengths[-1] = spec.max_position
    return tuple(ContextMemory(tokens, _kv_bytes(spec, backend, dtype, tokens=tokens)) for tokens in lengths)


def _kv_bytes(spec: DecoderSpec, backend: Backend, dtype: KvDtype, *, tokens: int) -> int:
    """Bytes of ``tokens`` of context in the KV cache: in each layer, as many of them as its window has."""
    attention = spec.attention
    shape = KvShape(
        blocks=(1,),
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        block_size=BLOCK_SIZE,
        dtype=dtype,
    )
    kept = sum(min(layer.window or tokens, tokens) for layer in spec.layers)
    return backend.kv_cache(shape).nbytes * kept // BLOCK_SIZE
