"""Reads safetensors models through a memory map: one file, or a folder with one or several.

The format has eight bytes of header length, little-endian; a header of JSON with each tensor's type, shape and offsets;
and the tensors' bytes without gaps. The safetensors project's README describes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mistralrs.errors import FormatError, LoadError
from mistralrs.files import HEAD_BYTES, parse_json, read_json, refuse_other_kinds
from mistralrs.loading.checkpoint import MappedCheckpoint, MappedFile, Span, map_file, pickle_error
from mistralrs.loading.cursor import U64, Cursor, shown
from mistralrs.quant.types import TYPES

MAX_HEADER_BYTES = 32 << 20
"""Bytes of a header, at most; 100,000 tensors take a third of them."""
MAX_DIMENSIONS = 8
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPES = {name: TYPES[name] for name in ("F32", "F16", "BF16")}
_DAMAGED = "the file is damaged or not a safetensors model: fetch it again"
_INDEX_DAMAGED = f"fetch {INDEX_NAME} and all files that it names again"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_QUANTIZED_HINT = "use the unquantized model, with --isq to quantize it while it loads, or a GGUF file"
_TUNED_PREFIX = "base_model.model.model"


class SafetensorsFile(MappedCheckpoint):
    """An open safetensors model; a context manager. ``base_model.model.model`` in a tensor's name becomes ``model``."""

    @classmethod
    def open(cls, path: Path, *, reads_config: bool = True) -> SafetensorsFile:
        """Maps the files and reads their headers, but no tensors.

        ``reads_config``: a `config.json` beside them is that of their model, and says whether they are quantized.
        ``path`` is a file, an index of files or a folder; a file that an index beside it names opens all of its files.
        Raises LoadError if a file is missing or cannot be read or the model has an unsupported quantization,
        FormatError if a file is not valid.
        """
        folder = path if path.is_dir() else path.parent
        if reads_config:
            refuse_quantized_config(folder / "config.json")
        files = _files(path)
        spans: dict[str, Span] = {}
        mappings = []
        for file in files:
            mapping, found = _read_file(file.path)
            mappings.append(mapping)
            for name in found if file.expected_tensors is None else file.expected_tensors:
                if name not in found:
                    reason = f"is missing, though {INDEX_NAME} says that it is here"
                    raise FormatError(str(file.path), f"tensor {shown(name)}", reason, hint=_INDEX_DAMAGED)
                plain_name = name.replace(_TUNED_PREFIX, "model")
                if plain_name in spans:
                    raise FormatError(str(file.path), f"tensor {shown(name)}", "is in the model twice", hint=_DAMAGED)
                spans[plain_name] = found[name]
        return cls(path, mappings, spans)


class _File(NamedTuple):
    path: Path
    expected_tensors: list[str] | None
    """The tensors that the index expects in this file; None: all of them."""


def _files(path: Path) -> list[_File]:
    """The files of the model at ``path``."""
    if path.name.endswith(".index.json"):
        return _indexed(path)
    if not path.is_dir():
        if any(path.match(pattern) for pattern in _PICKLES):
            raise pickle_error(path)
        index = path.with_name(INDEX_NAME)
        files = _indexed(index) if index.is_file() else []
        return files if path in [file.path for file in files] else [_File(path, None)]
    if (path / INDEX_NAME).is_file():
        return _indexed(path / INDEX_NAME)
    if (path / SINGLE_NAME).is_file():
        return [_File(path / SINGLE_NAME, None)]
    everything = sorted(path.glob("*.safetensors"))
    # Mistral's repositories have a second copy of the weights under this name.
    chosen = [file for file in everything if not file.name.startswith("consolidated")] or everything
    if not chosen:
        _refuse_without_safetensors(path)
    _check_numbers(chosen)
    return [_File(file, None) for file in chosen]


def _refuse_without_safetensors(folder: Path) -> None:
    for pattern in _PICKLES:
        for pickle in sorted(folder.glob(pattern)):
            raise pickle_error(pickle)
    raise LoadError(f"{folder} has no .safetensors file", hint="give a folder with a model, or the path of a file")


def _check_numbers(files: list[Path]) -> None:
    """Raises LoadError if a file of a numbered series is missing."""
    names = {file.name for file in files}
    for file in files:
        match = _NUMBERED.fullmatch(file.name)
        for number in range(1, int(match["count"]) + 1) if match else ():
            assert match
            name = f"{match['stem']}-{number:05}-of-{match['count']}.safetensors"
            if name not in names:
                raise LoadError(f"{file} is one of several files of a model; {name} is missing", hint=_INDEX_DAMAGED)


def _indexed(index: Path) -> list[_File]:
    """The files that an index names, each with the tensors that the index expects in it."""
    content = read_json(index, hint=_INDEX_DAMAGED, unique=True)
    weights = content.get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise FormatError(str(index), "weight_map", "is missing or not an object", hint=_INDEX_DAMAGED)
    names: dict[str, list[str]] = {}
    for tensor, name in weights.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            reason = f"is said to be in {shown(name)}, expected the name of a .safetensors file beside the index"
            raise FormatError(str(index), f"tensor {shown(tensor)}", reason, hint=_INDEX_DAMAGED)
        names.setdefault(name, []).append(tensor)
    for name in sorted(names):
        if not index.with_name(name).is_file():
            raise LoadError(f"{index} names {shown(name)}, which is missing", hint=_INDEX_DAMAGED)
    return [_File(index.with_name(name), names[name]) for name in sorted(names)]


def refuse_quantized_config(config: Path) -> None:
    """Raises LoadError if the model of this config.json is quantized."""
    if not config.exists():
        return
    content = read_json(config, hint="fetch config.json again")
    inner = content.get("text_config")
    quantization = content.get("quantization_config") or (
        inner.get("quantization_config") if isinstance(inner, dict) else None
    )
    if quantization is None:
        return
    settings = quantization if isinstance(quantization, dict) else {}
    # the tool, then its format, under the keys that different tools use
    names = [settings.get(key) for key in ("quant_method", "quant_algo", "format")]
    known = [name.upper() for name in names if isinstance(name, str) and re.fullmatch(r"[\w-]{1,40}", name)]
    description = f"with {' '.join(known)}" if known else "in an unknown way"
    raise LoadError(
        f"{config.parent} holds a model quantized {description}, which is not supported", hint=_QUANTIZED_HINT
    )


def _read_file(path: Path) -> tuple[MappedFile, dict[str, Span]]:
    """One mapped file and the places of its tensors, by the names in the file."""
    mapping = map_file(path, hint=_DAMAGED)
    refuse_other_kinds(path, mapping[:HEAD_BYTES], expected={"safetensors"})
    cursor = Cursor(path, mapping, limit=len(mapping), hint=_DAMAGED)
    length = cursor.read(U64)
    if length > MAX_HEADER_BYTES:
        raise cursor.error(f"has a length of {length} bytes, more than {MAX_HEADER_BYTES}")
    header = cursor.read_bytes(length)
    if not header.startswith(b"{"):
        raise cursor.error(f"starts with {shown(header[:1])} instead of b'{{'")
    entries = _parse(path, "header", header, hint=_DAMAGED)
    _check_metadata(cursor, entries.pop("__metadata__", {}))
    return mapping, _locate(cursor, mapping, entries)


def _check_metadata(cursor: Cursor, metadata: object) -> None:
    cursor.place = "__metadata__"
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise cursor.error("is not an object of texts")


def _locate(cursor: Cursor, mapping: MappedFile, entries: Mapping[str, object]) -> dict[str, Span]:
    """The places of all tensors, with all checks of their offsets."""
    start = cursor.position
    spans = {name: _span(cursor, mapping, name, entry, start) for name, entry in entries.items()}
    end, before = start, ""
    for name, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].size)):
        cursor.place = f"tensor {shown(name)}"
        if span.start < end:
            raise cursor.error(f"its data at byte {span.start} overlaps that of tensor {shown(before)}")
        if span.start > end:
            raise cursor.error(f"its data starts at byte {span.start}, {span.start - end} after what comes before")
        end, before = span.start + span.size, name
    if end != cursor.file_size:
        cursor.place = "data"
        raise cursor.error(f"ends at byte {end}, but the file at byte {cursor.file_size}")
    return spans


def _span(cursor: Cursor, mapping: MappedFile, name: str, entry: object, data_start: int) -> Span:
    cursor.place = f"tensor {shown(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise cursor.error("is not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if name.endswith((".qweight", ".qzeros")):
        raise LoadError(
            f"{cursor.path} is quantized with GPTQ or AWQ, as its tensor {shown(name)} shows; that is not supported",
            hint=_QUANTIZED_HINT,
        )
    if not isinstance(dtype, str):
        raise cursor.error(f"has the type {shown(dtype)}, expected a text")
    if dtype not in _DTYPES:
        supported = f"supported types: {', '.join(_DTYPES)}"
        raise cursor.error(f"is stored as {shown(dtype)}, which is not supported", hint=supported)
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise cursor.error(f"has the shape {shown(shape)}, expected a list of at most {MAX_DIMENSIONS} lengths")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise cursor.error(f"has the offsets {shown(offsets)}, expected two numbers")
    size = math.prod(shape) * _DTYPES[dtype].block_bytes
    begin, end = offsets
    if end - begin != size:
        raise cursor.error(f"has {end - begin} bytes of data, but {dtype} of shape {shown(shape)} takes {size}")
    if data_start + end > cursor.file_size:
        raise cursor.error(
            f"its data ends at byte {data_start + end}, past the end of the file at byte {cursor.file_size}"
        )
    return Span(mapping, _DTYPES[dtype], tuple(shape), data_start + begin, size)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 1 << 63 for count in value)


def _parse(path: Path, place: str, text: bytes, *, hint: str) -> dict[str, object]:
    """A JSON object without repeated keys. Raises FormatError."""
    try:
        return parse_json(text.decode(), unique=True)
    except UnicodeDecodeError as error:
        raise FormatError(str(path), place, f"is not JSON: {error}", hint=hint) from error
    except ValueError as error:
        raise FormatError(str(path), place, str(error), hint=hint) from error
