"""Reads LoRA adapters from the GGUF files that llama.cpp's `convert_lora_to_gguf.py` writes.

`general.type` is `adapter`. A matrix of the model has two tensors under its own name: `.lora_a` (rank, columns) and
`.lora_b` (rows, rank); those of all experts are stacked. Of the embedding they are (vocabulary, rank) and (hidden size,
rank). Rows of `.lora_b` stand in the order of the model's GGUF files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.adapters.lora.lora import LoraAdapter, LoraDelta, digest_of
from mistralrs.adapters.lora.lora_targets import Target, stored_order, targets_of
from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.checkpoint import RawTensor
from mistralrs.loading.cursor import shown
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.models.architecture import WeightsMapping
from mistralrs.models.parts import WeightKey
from mistralrs.models.registry import ARCHITECTURES, GGUF_NAMES, GGUF_OTHER_NAMES
from mistralrs.models.spec import DecoderSpec
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES

if TYPE_CHECKING:
    import torch

ALPHA, TOKENS, KIND = "adapter.lora.alpha", "adapter.alora.invocation_tokens", "adapter.type"
A_SUFFIX, B_SUFFIX = ".lora_a", ".lora_b"
OTHER_BASE = "the adapter was made for another base model: mistralrs adapter inspect shows what it says of its own"

_FLOATS = frozenset({"F32", "F16", "BF16"})
_EMBEDDING = "embed_tokens"


@dataclass(frozen=True, slots=True)
class GgufLoraHeader:
    """The content of a GGUF LoRA file that says something without its base model."""

    architecture: str
    """``general.architecture`` of the base."""
    alpha: float
    """0: the scale is 1; otherwise it is alpha / rank."""
    invocation_tokens: tuple[int, ...]
    base: str | None
    """What the file calls its base model."""
    pairs: Mapping[str, tuple[RawTensor, RawTensor]]
    """lora_a and lora_b by the name of the model's tensor, in the file's order."""


def read_gguf_lora(path: Path, *, name: str, architecture: str, spec: DecoderSpec) -> LoraAdapter:
    """The adapter in a GGUF file, for a model of ``architecture`` (a key of ``ARCHITECTURES``) with this spec.

    Matrices that are stored as floats stay views of the mapped file; others are decoded to float32.
    Raises ``LoadError`` and ``FormatError``, with the file, the key and what was expected, for a file that is damaged
    or does not fit the model.
    """
    with GgufFile.open(path) as file:
        header = read_gguf_lora_header(file)
        _check_architecture(path, header, architecture)
        _check_tokens(path, header, spec)
        form = gguf_form(architecture)
        targets = targets_of(form, spec, alternatives=True)
        deltas: dict[WeightKey, LoraDelta] = {}
        for tensor, (a, b) in header.pairs.items():
            if tensor not in targets:
                tied = " (its head is the embedding)" if tensor == "output.weight" and spec.tied_head else ""
                reason = f"acts on {shown(tensor)}, which the model does not have{tied}"
                raise FormatError(str(path), f"tensor {shown(a.name)}", reason, hint=OTHER_BASE)
            for target, delta in _deltas(path, header, form, spec, targets[tensor], a, b):
                if target.key in deltas:
                    reason = f"the file has another addition to {target.key.part}"
                    raise FormatError(str(path), f"tensor {shown(a.name)}", reason)
                deltas[target.key] = delta
        _check_written(file, header)
    adapter = LoraAdapter(
        name=name,
        source=str(path),
        rank=max(delta.b.columns for delta in deltas.values()),
        deltas=deltas,
        invocation_tokens=header.invocation_tokens,
    )
    return replace(adapter, digest=digest_of(adapter))


def gguf_form(architecture: str) -> WeightsMapping:
    """The form of the GGUF files of an architecture, a key of ``ARCHITECTURES``."""
    form = ARCHITECTURES[GGUF_NAMES[architecture]].gguf
    assert form is not None
    return form


# The header


def read_gguf_lora_header(file: GgufFile) -> GgufLoraHeader:
    """What an open file says of itself. Raises ``LoadError`` for a model, ``FormatError`` for what is not valid."""
    kind = file.get("general.type", str, default="model")
    if kind == "model":
        raise LoadError(
            f"{file.path} is a model, not a LoRA adapter",
            hint="an adapter's file says adapter under general.type; llama.cpp's convert_lora_to_gguf.py writes such",
        )
    if kind != "adapter":
        raise _wrong_key(file, "general.type", kind, "'adapter'")
    found = file.require(KIND, str)
    if found != "lora":
        raise _wrong_key(file, KIND, found, "'lora'")
    alpha = file.get(ALPHA, float, default=0.0)
    if not math.isfinite(alpha):
        raise _wrong_key(file, ALPHA, alpha, "a finite number")
    pairs = _pairs(file)
    architecture = file.require("general.architecture", str)
    return GgufLoraHeader(architecture, alpha, _invocation_tokens(file), _base(file), pairs)


def _wrong_key(file: GgufFile, key: str, found: object, expected: str) -> FormatError:
    return FormatError(
        str(file.path),
        f"metadata key {key!r}",
        f"is {shown(found)}, expected {expected}",
        hint="only LoRA adapters are read: convert_lora_to_gguf.py of llama.cpp writes them",
    )


def _invocation_tokens(file: GgufFile) -> tuple[int, ...]:
    values = file.get(TOKENS, list, default=[])
    tokens = tuple(value for value in values if type(value) is int and value >= 0)
    if len(tokens) < len(values):
        raise _wrong_key(file, TOKENS, values, "a list of tokens")
    return tokens


def _base(file: GgufFile) -> str | None:
    for key in ("general.base_model.0.repo_url", "general.base_model.0.name", "general.basename"):
        value = file.get(key, str, default=None)
        if value:
            return value.removeprefix("https://huggingface.co/")
    return None


def _pairs(file: GgufFile) -> dict[str, tuple[RawTensor, RawTensor]]:
    names: dict[str, None] = {}
    for name in file.tensors:
        if name.endswith("_norm.weight"):
            raise LoadError(
                f"{file.path}: tensor {shown(name)} replaces a norm of the model, which is not supported",
                hint="train without norms, or merge the adapter with the tool that made it",
            )
        if not name.endswith((A_SUFFIX, B_SUFFIX)):
            raise FormatError(str(file.path), f"tensor {shown(name)}", f"ends neither in {A_SUFFIX} nor in {B_SUFFIX}")
        names[name.removesuffix(A_SUFFIX).removesuffix(B_SUFFIX)] = None
    if not names:
        raise FormatError(str(file.path), "tensors", "there are none")
    return {name: (file.tensor(name + A_SUFFIX), file.tensor(name + B_SUFFIX)) for name in names}


def _check_architecture(path: Path, header: GgufLoraHeader, architecture: str) -> None:
    found = GGUF_OTHER_NAMES.get(header.architecture, (header.architecture, None))[0]
    if found != GGUF_NAMES[architecture]:
        raise FormatError(
            str(path),
            "metadata key 'general.architecture'",
            f"is {shown(header.architecture)}, but the base model is {GGUF_NAMES[architecture]!r}",
            hint=OTHER_BASE,
        )


def _check_tokens(path: Path, header: GgufLoraHeader, spec: DecoderSpec) -> None:
    beyond = [token for token in header.invocation_tokens if token >= spec.vocab_size]
    if beyond:
        reason = f"has the token {beyond[0]}, the base model has {spec.vocab_size}"
        raise FormatError(str(path), f"metadata key {TOKENS!r}", reason, hint=OTHER_BASE)


# Matrices


def _deltas(
    path: Path,
    header: GgufLoraHeader,
    form: WeightsMapping,
    spec: DecoderSpec,
    targets: Sequence[Target],
    a: RawTensor,
    b: RawTensor,
) -> list[tuple[Target, LoraDelta]]:
    """The additions of one pair: to one part, to those that share a tensor, or to all experts."""
    is_embedding = targets[0].key.part == _EMBEDDING
    rank = _checked_rank(path, targets, a, b)
    scale = header.alpha / rank if header.alpha else 1.0
    read_a, read_b = _decoded(path, a), _decoded(path, b)
    found = []
    for target in targets:
        expert = target.key.expert if target.stacked else 0
        shape = (target.rows, rank) if is_embedding else (rank, target.columns)
        part_a = _rows(read_a, (expert or 0) * shape[0], shape)
        if is_embedding:
            part_b = _rows(read_b, 0, (target.columns, rank))
        else:
            first = (expert or 0) * target.rows + target.first_row
            part_b = replace(_rows(read_b, first, (target.rows, rank)), order=stored_order(form, spec, target))
        found.append((target, LoraDelta(a=part_a, b=part_b, scale=scale)))
    return found


def _checked_rank(path: Path, targets: Sequence[Target], a: RawTensor, b: RawTensor) -> int:
    """The rank of a pair whose shapes fit its targets."""
    first = targets[0]
    is_embedding = first.key.part == _EMBEDDING
    stack = (len(targets),) if first.stacked else ()
    rows = first.rows if first.stacked else sum(target.rows for target in targets)
    rank = a.shape[-1] if is_embedding else a.shape[-2] if len(a.shape) > 1 else 0
    expected_a = (first.rows, rank) if is_embedding else (*stack, rank, first.columns)
    expected_b = (first.columns, rank) if is_embedding else (*stack, rows, rank)
    for tensor, expected in ((a, expected_a), (b, expected_b)):
        if tensor.shape != expected or not rank:
            found, wanted = (" x ".join(map(str, shape)) for shape in (tensor.shape, expected))
            wanted = wanted if rank else f"rank x {first.columns}"
            raise FormatError(
                str(path), f"tensor {shown(tensor.name)}", f"is {found}, expected {wanted}", hint=OTHER_BASE
            )
    return rank


def _decoded(path: Path, tensor: RawTensor) -> Matrix:
    """All rows of a tensor as one matrix of floats. Raises ``FormatError`` if a number is not finite."""
    import torch

    columns = tensor.shape[-1]
    matrix = Matrix(tensor.name, tensor.type, math.prod(tensor.shape[:-1]), columns, tensor.data)
    values = float_values(matrix)
    if not bool(torch.isfinite(values).all()):
        raise FormatError(str(path), f"tensor {shown(tensor.name)}", "has a number that is not finite")
    return matrix if tensor.type.name in _FLOATS else stored_as_f32(tensor.name, values)


def float_values(matrix: Matrix) -> torch.Tensor:
    """(rows, columns): the values as stored if these are floats, otherwise decoded to float32; in the wanted order."""
    import torch

    from mistralrs.quant.dequantize import dequantize

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if matrix.type.name in dtypes:
        values = torch.frombuffer(matrix.data, dtype=dtypes[matrix.type.name]).view(-1, matrix.columns)
    else:
        raw = torch.frombuffer(matrix.data, dtype=torch.uint8).view(-1, matrix.type.row_bytes(matrix.columns))
        values = dequantize(matrix.type, raw, matrix.columns)
    return values if matrix.order is None else values[torch.tensor(matrix.order, dtype=torch.long)]


def stored_as_f32(name: str, values: torch.Tensor) -> Matrix:
    """A matrix of float32 in memory."""
    import torch

    rows, columns = values.shape
    data = values.to(torch.float32).contiguous().view(torch.uint8).numpy().data.cast("B")
    return Matrix(name, TYPES["F32"], rows, columns, data)


def _rows(matrix: Matrix, first: int, shape: tuple[int, int]) -> Matrix:
    width = matrix.type.row_bytes(matrix.columns)
    data = matrix.data[first * width : (first + shape[0]) * width]
    return Matrix(matrix.name, matrix.type, *shape, data)


def _check_written(file: GgufFile, header: GgufLoraHeader) -> None:
    """Raises ``FormatError`` if the pair at the file's end is all zeros, as after a download that did not end. A matrix
    of zeros alone may be one that was not trained yet."""
    last = max(file.tensors, key=lambda name: file.place(name)[1])
    a, b = header.pairs[last.removesuffix(A_SUFFIX).removesuffix(B_SUFFIX)]
    if not any(map(_has_other_bytes, (a, b))):
        reason = "it and its partner hold only zeros: the download did not end"
        raise FormatError(str(file.path), f"tensor {shown(last)}", reason)


def _has_other_bytes(tensor: RawTensor) -> bool:
    return bytes(tensor.data).count(0) < len(tensor.data)
