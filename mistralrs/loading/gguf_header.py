"""Reads the header of a GGUF file, versions 1 to 3: metadata as Python values, and the places of the tensors.

Every field is checked against the bytes that are left before it is used, so that a damaged file takes neither time nor
memory. ggml's `docs/gguf.md` describes the format.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from mistralrs.files import HEAD_BYTES, refuse_other_kinds
from mistralrs.loading.checkpoint import MappedFile, Span, map_file
from mistralrs.loading.cursor import U32, U64, Cursor, round_up, shown
from mistralrs.quant.types import BY_GGML_ID, QuantType

MAX_HEADER_BYTES = 128 << 20
"""Bytes of a header, at most, which bounds the memory of the metadata. The largest in use have a tokenizer of 33 MB."""
MAX_ARRAY_ELEMENTS = 3 << 20
"""Elements of all metadata arrays together, at most: twice those of a vocabulary of 262144 tokens with its merges."""
MAX_ARRAY_DEPTH = 4
"""Levels of arrays in arrays, at most."""
MAX_NAME_BYTES = 65535
"""Bytes of a metadata key, by the format, and of a tensor name, at most."""
MAX_ALIGNMENT = 1 << 20

_MAGIC = b"GGUF"
_VERSIONS = (1, 2, 3)
_DEFAULT_ALIGNMENT = 32
_ARRAY_WEIGHT = 64  # elements as which a nested array counts, because its list takes as much memory

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBER_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
"""The struct code of each metadata value type."""

_UNSUPPORTED = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""ggml's other tensor types, so that an error can name them."""

_DAMAGED = "the file is damaged or not a GGUF model: fetch it again"


class GgufPart(NamedTuple):
    """One file with the content of its header."""

    path: Path
    mapping: MappedFile
    version: int
    metadata: dict[str, object]
    metadata_range: tuple[int, int]
    """The bytes of the file with the metadata, from the first entry to the end of the last."""
    spans: dict[str, Span]


def read_part(path: Path) -> GgufPart:
    """Maps the file and reads its header, but no tensors.

    Raises LoadError if the file is missing or cannot be read, FormatError if it is not valid.
    """
    mapping = map_file(path, hint=_DAMAGED)
    refuse_other_kinds(path, mapping[:HEAD_BYTES], expected={"gguf"})
    header = _Header(path, mapping)
    version = header.read_version()
    tensor_count, entry_count = header.read_count(), header.read_count()
    start = header.position
    metadata = header.read_metadata(entry_count)
    metadata_range = (start, header.position)
    infos = header.read_tensor_infos(tensor_count)
    spans = _locate(header, mapping, infos, alignment=_alignment(header, metadata))
    return GgufPart(path, mapping, version, metadata, metadata_range, spans)


class _TensorInfo(NamedTuple):
    """A tensor's entry in the header; ``offset`` counts from the start of the data section."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    offset: int


class _Header(Cursor):
    """A cursor over the header."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        super().__init__(path, data, limit=MAX_HEADER_BYTES, hint=_DAMAGED)
        self._elements_left = MAX_ARRAY_ELEMENTS
        self._length = U64  # format of counts, lengths and dimensions; 32 bits in version 1

    def read_version(self) -> int:
        magic = self._data[self.take(len(_MAGIC)) : self.position]
        if magic != _MAGIC:
            raise self.error(f"starts with {magic!r} instead of {_MAGIC!r}")
        version = self.read(U32)
        if version not in _VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
                raise self.error("is a big-endian file", hint="only little-endian GGUF files are supported")
            raise self.error(f"has version {version}", hint="GGUF versions 1, 2 and 3 are supported")
        if version == 1:
            self._length = U32
        return version

    def read_count(self) -> int:
        return self.read(self._length)

    def read_metadata(self, count: int) -> dict[str, object]:
        # The smallest entry has a key of one byte, the type, and a value of one byte.
        self.check_count("metadata entries", count, smallest=self._length.size + 1 + 4 + 1)
        metadata: dict[str, object] = {}
        for index in range(count):
            self.place = f"metadata entry {index}"
            key = self._read_name()
            self.place = f"metadata key {shown(key)}"
            if key in metadata:
                raise self.error("appears twice")
            metadata[key] = self._read_value(self.read(U32))
        return metadata

    def read_tensor_infos(self, count: int) -> list[_TensorInfo]:
        self.place = "header"
        # The smallest entry has a name of one byte, one dimension, the type and the offset.
        self.check_count("tensors", count, smallest=self._length.size * 2 + 1 + 4 + 4 + 8)
        infos: dict[str, _TensorInfo] = {}
        for index in range(count):
            self.place = f"tensor {index}"
            name = self._read_name()
            self.place = f"tensor {shown(name)}"
            if name in infos:
                raise self.error("appears twice")
            infos[name] = self._read_tensor_info(name)
        return list(infos.values())

    def _read_tensor_info(self, name: str) -> _TensorInfo:
        num_dims = self.read(U32)
        if not 1 <= num_dims <= 4:
            raise self.error(f"has {num_dims} dimensions, expected 1 to 4")
        dims = [self.read(self._length) for _ in range(num_dims)]
        if 0 in dims:
            raise self.error(f"has a dimension of length 0: {dims}")
        type_id = self.read(U32)
        if type_id not in BY_GGML_ID:
            supported = f"supported types: {', '.join(sorted(t.name for t in BY_GGML_ID.values()))}"
            if type_id in _UNSUPPORTED:
                raise self.error(f"is stored as {_UNSUPPORTED[type_id]}, which is not supported", hint=supported)
            raise self.error(f"has the unknown type {type_id}", hint=supported)
        type_ = BY_GGML_ID[type_id]
        if dims[0] % type_.block_len:
            raise self.error(f"has rows of {dims[0]} weights, not a multiple of {type_.name}'s {type_.block_len}")
        return _TensorInfo(name, type_, tuple(reversed(dims)), self.read(U64))

    def _read_value(self, kind: int) -> object:
        if kind == _STRING:
            return self.read_text(self.read(self._length))
        if kind == _ARRAY:
            return self._read_array(1)
        return self._read_numbers(kind, 1)[0]

    def _read_array(self, depth: int) -> list[object]:
        if depth > MAX_ARRAY_DEPTH:
            raise self.error(f"has arrays nested more than {MAX_ARRAY_DEPTH} deep")
        kind = self.read(U32)
        count = self.read(self._length)
        if kind == _STRING:
            self.check_count("strings", count, smallest=self._length.size)
        elif kind == _ARRAY:
            self.check_count("arrays", count, smallest=self._length.size + 4)
        self._elements_left -= count * (_ARRAY_WEIGHT if kind == _ARRAY else 1)
        if self._elements_left < 0:
            raise self.error(f"claims {count} elements; more than {MAX_ARRAY_ELEMENTS} in all are refused")
        if kind == _STRING:
            return self._read_strings(count)
        if kind == _ARRAY:
            return [self._read_array(depth + 1) for _ in range(count)]
        return self._read_numbers(kind, count)

    def _read_numbers(self, kind: int, count: int) -> list[object]:
        code = _NUMBER_CODES.get(kind)
        if code is None:
            raise self.error(f"has the unknown value type {kind}")
        start = self.take(count * struct.calcsize("<" + code))
        values = struct.unpack_from(f"<{count}{code}", self._data, start)
        if kind != _BOOL:
            return list(values)
        if max(values, default=0) > 1:
            raise self.error(f"has the truth value {max(values)}, expected 0 or 1")
        return [value == 1 for value in values]

    def _read_strings(self, count: int) -> list[object]:
        # Vocabularies have hundreds of thousands of strings, so the loop uses local names and no calls of ours.
        data, end, position = self._data, self._end, self.position
        width, unpack = self._length.size, self._length.unpack_from
        strings: list[object] = []
        append = strings.append
        try:
            for _ in range(count):
                start = position + width
                if start > end:
                    break
                position = start + unpack(data, position)[0]
                if position > end:
                    break
                append(data[start:position].decode())
        except UnicodeDecodeError as error:
            raise self.error(f"string {len(strings)} at byte {start} is not UTF-8") from error
        if len(strings) < count:
            raise self.error(f"string {len(strings)} of {count} runs past {self.end_name()}")
        self.position = position
        return strings

    def _read_name(self) -> str:
        length = self.read(self._length)
        if not 1 <= length <= MAX_NAME_BYTES:
            raise self.error(f"has a name of {length} bytes, expected 1 to {MAX_NAME_BYTES}")
        return self.read_text(length)


def _alignment(header: _Header, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    # The format requires a multiple of 8; only a power of two aligns tensors for wider loads.
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment.bit_count() != 1:
        header.place = "metadata key 'general.alignment'"
        raise header.error(f"is {shown(alignment)}, expected a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _locate(header: _Header, data: MappedFile, infos: list[_TensorInfo], *, alignment: int) -> dict[str, Span]:
    """The places of all tensors by name, in the file's order, with all checks of their offsets."""
    data_start = round_up(header.position, alignment)
    spans: dict[str, Span] = {}
    for name, type_, shape, offset in infos:
        header.place = f"tensor {shown(name)}"
        if offset % alignment:
            raise header.error(f"its offset {offset} is not a multiple of the alignment {alignment}")
        span = Span(data, type_, shape, data_start + offset, math.prod(shape[:-1]) * type_.row_bytes(shape[-1]))
        if span.start + span.size > header.file_size:
            raise header.error(
                f"its data ends at byte {span.start + span.size}, past the end of the file at byte {header.file_size}"
            )
        spans[name] = span
    end, before = data_start, ""
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        if span.start < end:
            header.place = f"tensor {shown(name)}"
            raise header.error(f"its data at byte {span.start} overlaps that of tensor {shown(before)}")
        end, before = span.start + span.size, name
    return spans
