"""Writes a safetensors model as a GGUF file with quantized weights.

The names of parts and metadata come from the architecture's two ``WeightsMapping``. The weights equal those with which
``--isq`` computes.
"""

from __future__ import annotations

import logging
import math
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import cast

from mistralrs.errors import LoadError
from mistralrs.loading.architecture_lookup import hugging_face_mapping, kind_of, naming, read_spec
from mistralrs.loading.checkpoint_parts import (
    CheckpointParts,
    bias_name,
    interleaved_to_halves,
    inverse_order,
    rows_in_order,
    tensor_name,
    untied,
)
from mistralrs.loading.convert import Conversion
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.gguf_writer import TensorInfo, Value, new_gguf
from mistralrs.loading.model_metadata import HfMetadata, read_text_config
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.loading.text_source import TextSource
from mistralrs.loading.vocabulary_check import check_vocabulary
from mistralrs.models.architecture import Default, GgufFields, WeightsMapping
from mistralrs.models.architecture import Value as Kind
from mistralrs.models.parts import WeightKey, WeightMerge
from mistralrs.models.registry import ARCHITECTURES, GGUF_NAMES
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.backend import Backend, resolve
from mistralrs.progress import Progress
from mistralrs.quant.quantize import isq_type
from mistralrs.quant.types import TYPES, QuantType

_QUANTISATION_VERSION = 2
"""Version of ggml's quantized types; older versions had other blocks under the same numbers."""
_FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "BF16": 32,
}
"""llama.cpp's numbers for files with matrices mostly of one type; of its mixtures, the one with fewest other types."""
MakeMerge = Callable[[str, DecoderSpec], WeightMerge]
"""Makes what is merged into the weights of a model of this architecture and spec."""
_logger = logging.getLogger(__name__)


def quantize_model(
    source: Path,
    out: Path,
    type: str | None,
    *,
    name: str | None = None,
    merge: MakeMerge | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes ``out``, a GGUF file, from the safetensors at ``source``: a folder, one file or an index of files.

    Every matrix gets ``type``, a key of ``quant.quantize.ISQ_TYPES``, or the type that ``--isq`` takes instead if its
    rows do not split in blocks of it; None: that of the safetensors. ``merge`` makes what is merged into the weights.
    Norms, biases and routers are F32. One matrix, or one expert's, is in memory at a
    time. ``name``: the model's name in the file; None: the folder's name. An existing file is replaced once the new one
    is complete.

    Raises ``UsageError`` for another type, ``LoadError`` and ``FormatError`` for a model that cannot be read or that a
    GGUF file cannot hold, and if the file cannot be written; nothing is left behind then.
    """
    wanted = None if type is None else isq_type(type)
    _refuse_other_formats(source)
    with SafetensorsFile.open(source) as file:
        with naming(source):
            parts, metadata, tensors = _planned(source, file, wanted, name, merge)
        _write(out, metadata, tensors, parts, progress)


def _planned(
    source: Path, file: SafetensorsFile, wanted: QuantType | None, name: str | None, make_merge: MakeMerge | None
) -> tuple[CheckpointParts, dict[str, Value], list[_Tensor]]:
    """The source of the parts, and all that the file will contain; all checks are done."""
    folder = source if source.is_dir() else source.parent
    config = read_text_config(file, folder / "config.json")
    architecture, form = hugging_face_mapping(source, config, None)
    facts = HfMetadata(file, folder / "config.json", config)
    spec = read_spec(source, form, facts)
    target = ARCHITECTURES[GGUF_NAMES[architecture]].gguf
    assert target is not None
    assert target.write is not None
    merge = None if make_merge is None else make_merge(architecture, spec)
    if merge is not None and merge.unties_head:
        form, spec = untied(form, spec)
    parts = CheckpointParts(file, form, spec, cpu_backend(), conversion=Conversion(quantize_to=wanted), merge=merge)
    written = target.write(spec, facts)
    tensors = [*_part_tensors(parts, target, spec), *_vector_tensors(written.vectors)]
    _check_told(spec, target, written, tensors)
    stored = Counter(tensor.info.type.name for tensor in tensors if len(tensor.info.shape) > 1)
    file_type = stored.most_common(1)[0][0] if wanted is None else wanted.name
    metadata = _general(GGUF_NAMES[architecture], name or folder.resolve().name, file_type) | written.metadata
    return parts, metadata | _text_metadata(folder, spec), tensors


def _refuse_other_formats(source: Path) -> None:
    kind = kind_of(source)
    if kind == "gguf":
        GgufFile.open(source).close()  # raises an error if it is another kind of file
    if kind != "safetensors":
        raise LoadError(f"{source} is a {kind.upper()} file already", hint="name the safetensors that it was made from")


def cpu_backend() -> Backend:
    """The backend that quantizes."""
    resolved = resolve("cpu")
    for reason in resolved.unavailable_backends:
        _logger.warning("slower than it could be: %s", reason)
    return resolved.backend


# Tensors


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor of the file: either parts, whose rows are in the file's order, or ``values``."""

    info: TensorInfo
    places: tuple[WeightKey, ...] = ()
    order: array[int] | None = None
    """For each row of a part in the file, its row in the model."""
    values: array[float] = field(default_factory=lambda: array("f"))

    def pieces(self, parts: CheckpointParts) -> Iterator[memoryview]:
        """The bytes, one part at a time."""
        if not self.places:
            yield memoryview(self.values).cast("B")
        for place in self.places:
            yield rows_in_order(parts.matrix(place).data, self.order)
            parts.release([place])


def _part_tensors(parts: CheckpointParts, form: WeightsMapping, spec: DecoderSpec) -> Iterator[_Tensor]:
    """All tensors in order: parts that the mapping has in one tensor together, each followed by its bias."""
    pieces = form.tensors(spec)
    together: dict[str, list[WeightKey]] = {}
    for place in parts.weight_keys():
        together.setdefault(tensor_name(pieces[place.part], place), []).append(place)
    for name, places in together.items():
        if parts.is_matrix(places[0]):
            tensor, bias = _matrix_tensor(parts, form, spec, name, places)
        else:
            weight, bias = parts.vectors(places[0])
            tensor = _vector_tensor(name, weight)
        yield tensor
        if bias:
            yield _vector_tensor(bias_name(name), bias)


def _matrix_tensor(
    parts: CheckpointParts, form: WeightsMapping, spec: DecoderSpec, name: str, places: Sequence[WeightKey]
) -> tuple[_Tensor, array[float] | None]:
    """The tensor of one or several parts, and their bias."""
    planned = [parts.planned(place) for place in places]
    order = None
    if places[0].part in form.interleaved:
        order = inverse_order(
            interleaved_to_halves(planned[0].rows, spec.attention.head_dim, spec.attention.ropes[0].dim)
        )
    biases = [matrix.bias for matrix in planned if matrix.bias is not None]
    if biases and len(biases) < len(planned):
        raise LoadError(f"{planned[0].name}: a GGUF file has one bias for q, k and v, of which only some have one")
    bias = array("f", chain.from_iterable(biases)) if biases else None
    if bias is not None and order is not None:
        bias = array("f", (bias[row] for row in order))
    shape: tuple[int, ...] = (sum(matrix.rows for matrix in planned), planned[0].columns)
    if places[0].expert is not None:
        shape = (len(planned), planned[0].rows, planned[0].columns)
    return _Tensor(TensorInfo(name, planned[0].type, shape), tuple(places), order), bias


def _vector_tensors(vectors: Mapping[str, Iterable[float]]) -> Iterator[_Tensor]:
    for name, values in vectors.items():
        yield _vector_tensor(name, array("f", values))


def _vector_tensor(name: str, values: array[float]) -> _Tensor:
    return _Tensor(TensorInfo(name, TYPES["F32"], (len(values),)), values=values)


# Metadata


def _general(architecture: str, name: str, type: str) -> dict[str, Value]:
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[type],
        "general.quantization_version": _QUANTISATION_VERSION,
    }


def _text_metadata(folder: Path, spec: DecoderSpec) -> dict[str, Value]:
    """The metadata of the tokenizer and of the chat template."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise LoadError(
            f"{folder} has no tokenizer.json and no tokenizer.model",
            hint="a GGUF file holds the tokenizer: put the model's own beside its weights",
        )
    tokenizer, template = TextSource().for_model(str(folder))
    check_vocabulary(folder, tokenizer, spec)
    metadata: dict[str, Value] = {**tokenizer.to_gguf(size=spec.vocab_size)}
    if template is not None:
        metadata["tokenizer.chat_template"] = template.source
    return metadata


class _WrittenMetadata:
    """The ``ModelMetadata`` of a file that is not written yet."""

    def __init__(self, written: GgufFields, tensors: Iterable[_Tensor]) -> None:
        self._metadata = written.metadata
        self._tensors = {tensor.info.name: tensor for tensor in tensors}

    def require(self, key: str, kind: type[Kind]) -> Kind:
        value = self._metadata[key]
        if isinstance(value, float):
            [value] = struct.unpack("<f", struct.pack("<f", value))
        return cast(Kind, value)

    def get(self, key: str, kind: type[Kind], *, default: Default) -> Kind | Default:
        return self.require(key, kind) if key in self._metadata else default

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        return self._tensors[tensor].info.shape if tensor in self._tensors else None

    def vector(self, tensor: str) -> Sequence[float]:
        return self._tensors[tensor].values if tensor in self._tensors else ()


def _check_told(spec: DecoderSpec, form: WeightsMapping, written: GgufFields, tensors: Iterable[_Tensor]) -> None:
    """Raises ``LoadError`` if a reader would get another spec, because GGUF lacks a key for a property of the model."""
    told = form.spec(_WrittenMetadata(written, tensors))
    ours, theirs = _settings(spec), _settings(told)
    lost = [name for name, value in ours.items() if not _alike(value, theirs.get(name))]
    if lost:
        raise LoadError(
            f"a GGUF file cannot say this model's {' and '.join(lost)}, so it would not be the same model",
            hint="--isq quantizes the safetensors while they are loaded",
        )


def _settings(spec: DecoderSpec) -> dict[str, object]:
    """Every setting by its name, those of a part under ``part_setting``."""
    settings: dict[str, object] = {}
    for name, value in asdict(spec).items():
        inner = value if isinstance(value, dict) else None
        settings |= {name: value} if inner is None else {f"{name}_{key}": each for key, each in inner.items()}
    settings["attention_scale"] = spec.attention.scale or spec.attention.head_dim**-0.5
    return settings


def _alike(one: object, other: object) -> bool:
    """Returns whether two values of a spec are equal up to the rounding of floats."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _write(
    out: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[_Tensor],
    parts: CheckpointParts,
    progress: Progress | None,
) -> None:
    total, done = sum(tensor.info.nbytes for tensor in tensors), 0
    with new_gguf(out, metadata, [tensor.info for tensor in tensors]) as writer:
        for tensor in tensors:
            writer.write(tensor.info.name, tensor.pieces(parts))
            done += tensor.info.nbytes
            if progress:
                progress("quantizing", done, total)
