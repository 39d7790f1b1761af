"""Reads GGUF files, versions 1 to 3, through a memory map: metadata as Python values, tensors as bytes where they lie.

Knows the container and nothing of what is in it: no architecture, no tokenizer, no decoding of weights. Needs neither
torch nor numpy. Every field is checked against the bytes that are left before it is used, so that a damaged file
costs an error and neither time nor memory. The format is described in ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import math
import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple, TypeVar

from mistralrs.errors import FormatError, LoadError
from mistralrs.quant.types import BY_GGML_ID, TYPES, QuantType

MAX_HEADER_BYTES = 128 << 20
"""A longer header is refused; the largest in use hold a tokenizer of 33 MB. Bounds what the metadata can take."""
MAX_ARRAY_ELEMENTS = 3 << 20
"""Elements of all metadata arrays together; twice those of a vocabulary of 262144 tokens with its merges."""
MAX_ARRAY_DEPTH = 4
"""Arrays in arrays."""
MAX_NAME_BYTES = 65535
"""Of a metadata key (so the format says) and of a tensor name."""
MAX_ALIGNMENT = 1 << 20

_MAGIC = b"GGUF"
_VERSIONS = (1, 2, 3)
_DEFAULT_ALIGNMENT = 32
_ARRAY_WEIGHT = 64  # an array within an array counts as so many elements, for that is what its list costs
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBER_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
"""Metadata value type -> struct code."""

_UNSUPPORTED = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""ggml's other tensor types, so that a refusal can name them."""

_DAMAGED = "the file is damaged or not a GGUF model: fetch it again"

Value = TypeVar("Value", bool, int, float, str, list[object])
Default = TypeVar("Default")


@dataclass(frozen=True, slots=True)
class RawTensor:
    """Rows of a stored matrix, still in the mapped file."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    """As torch would say it, rows first: the reverse of the order in the file."""
    data: memoryview
    """All bytes, row after row, format "B". Not to be written: the map is private and writable only so that its
    address can be taken. Keeps the map alive, also after ``GgufFile.close``."""


class GgufFile:
    """An open GGUF file; a context manager.

    The metadata values are bool, int, float, str, or (nested) lists of one of these.
    """

    def __init__(
        self, path: Path, mapping: mmap.mmap, *, version: int, metadata: dict[str, object], spans: dict[str, _Span]
    ) -> None:
        view = memoryview(mapping)
        self.path = path
        self.version = version
        self.metadata: Mapping[str, object] = MappingProxyType(metadata)
        self.tensors: Mapping[str, RawTensor] = MappingProxyType(
            {
                name: RawTensor(name, span.type, span.shape, view[span.start : span.start + span.size])
                for name, span in spans.items()
            }
        )
        self._mapping: mmap.mmap | None = mapping
        self._spans = spans

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Maps the file and reads its header; no tensor byte is touched.

        Raises LoadError when there is no such file or it cannot be read, FormatError when it is not what it should be.
        """
        mapping = _map(path)
        header = _Header(path, mapping)
        version = header.read_version()
        tensor_count, entry_count = header.read_count(), header.read_count()
        metadata = header.read_metadata(entry_count)
        infos = header.read_tensor_infos(tensor_count)
        spans = _locate(header, infos, alignment=_alignment(header, metadata))
        return cls(path, mapping, version=version, metadata=metadata, spans=spans)

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name; FormatError when the file has none."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FormatError(str(self.path), f"tensor {_shown(name)}", "is missing")
        return tensor

    def require(self, key: str, kind: type[Value]) -> Value:
        """The metadata value under ``key``; FormatError when it is missing or not a ``kind``.

        A float may be stored as an integer; nothing else is converted.
        """
        if key not in self.metadata:
            raise FormatError(str(self.path), f"metadata key {_shown(key)}", "is missing")
        value = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            reason = f"is of type {type(value).__name__}, expected {kind.__name__}"
            raise FormatError(str(self.path), f"metadata key {_shown(key)}", reason)
        return value

    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default:
        """As ``require``, but ``default`` when the key is missing."""
        return self.require(key, kind) if key in self.metadata else default

    def release(self, tensor: RawTensor) -> None:
        """Gives back the memory pages that lie wholly within the tensor; reading it again fetches them again."""
        if self._mapping is None:
            raise ValueError(f"{self.path} is closed")
        span = self._spans[tensor.name]
        first = _round_up(span.start, mmap.PAGESIZE)
        end = (span.start + span.size) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            self._mapping.madvise(mmap.MADV_DONTNEED, first, end - first)

    def close(self) -> None:
        """Lets go of the map, which is gone once the last ``RawTensor.data`` in use is. Metadata stays."""
        self.tensors = MappingProxyType({})
        self._mapping = None

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _TensorInfo(NamedTuple):
    """What the header says of one tensor; ``offset`` counts from the start of the data section."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    offset: int


class _Span(NamedTuple):
    """Where a tensor lies: ``start`` and ``size`` in bytes of the file."""

    type: QuantType
    shape: tuple[int, ...]
    start: int
    size: int


class _Header:
    """A cursor over the header. ``place`` is what is being read; nothing is read before its bytes are checked."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.place = "header"
        self.position = 0
        self.file_size = len(data)
        self._path = path
        self._data = data
        self._end = min(len(data), MAX_HEADER_BYTES)
        self._elements_left = MAX_ARRAY_ELEMENTS
        self._length = _U64  # of counts, lengths and dimensions; version 1 has 32 bits

    def error(self, reason: str, *, hint: str = _DAMAGED) -> FormatError:
        return FormatError(str(self._path), self.place, reason, hint=hint)

    def read_version(self) -> int:
        magic = self._data[self._take(len(_MAGIC)) : self.position]
        if magic != _MAGIC:
            raise self.error(f"starts with {magic!r} instead of {_MAGIC!r}")
        version = self._read(_U32)
        if version not in _VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
                raise self.error("is a big-endian file", hint="only little-endian GGUF files are supported")
            raise self.error(f"has version {version}", hint="GGUF versions 1, 2 and 3 are supported")
        if version == 1:
            self._length = _U32
        return version

    def read_count(self) -> int:
        return self._read(self._length)

    def read_metadata(self, count: int) -> dict[str, object]:
        # The smallest entry: a key of one byte, the type, and a value of one byte.
        self._check_count("metadata entries", count, smallest=self._length.size + 1 + 4 + 1)
        metadata: dict[str, object] = {}
        for index in range(count):
            self.place = f"metadata entry {index}"
            key = self._read_name()
            self.place = f"metadata key {_shown(key)}"
            if key in metadata:
                raise self.error("appears twice")
            metadata[key] = self._read_value(self._read(_U32))
        return metadata

    def read_tensor_infos(self, count: int) -> list[_TensorInfo]:
        self.place = "header"
        # The smallest: a name of one byte, one dimension, and the type and offset.
        self._check_count("tensors", count, smallest=self._length.size * 2 + 1 + 4 + 4 + 8)
        infos: dict[str, _TensorInfo] = {}
        for index in range(count):
            self.place = f"tensor {index}"
            name = self._read_name()
            self.place = f"tensor {_shown(name)}"
            if name in infos:
                raise self.error("appears twice")
            infos[name] = self._read_tensor_info(name)
        return list(infos.values())

    def _read_tensor_info(self, name: str) -> _TensorInfo:
        num_dims = self._read(_U32)
        if not 1 <= num_dims <= 4:
            raise self.error(f"has {num_dims} dimensions, expected 1 to 4")
        dims = [self._read(self._length) for _ in range(num_dims)]
        if 0 in dims:
            raise self.error(f"has a dimension of length 0: {dims}")
        type_id = self._read(_U32)
        if type_id not in BY_GGML_ID:
            supported = f"supported types: {', '.join(TYPES)}"
            if type_id in _UNSUPPORTED:
                raise self.error(f"is stored as {_UNSUPPORTED[type_id]}, which is not supported", hint=supported)
            raise self.error(f"has the unknown type {type_id}", hint=supported)
        type_ = BY_GGML_ID[type_id]
        if dims[0] % type_.block_len:
            raise self.error(f"has rows of {dims[0]} weights, not a multiple of {type_.name}'s {type_.block_len}")
        return _TensorInfo(name, type_, tuple(reversed(dims)), self._read(_U64))

    def _read_value(self, kind: int) -> object:
        if kind == _STRING:
            return self._read_text(self._read(self._length))
        if kind == _ARRAY:
            return self._read_array(1)
        return self._read_numbers(kind, 1)[0]

    def _read_array(self, depth: int) -> list[object]:
        if depth > MAX_ARRAY_DEPTH:
            raise self.error(f"has arrays nested more than {MAX_ARRAY_DEPTH} deep")
        kind = self._read(_U32)
        count = self._read(self._length)
        if kind == _STRING:
            self._check_count("strings", count, smallest=self._length.size)
        elif kind == _ARRAY:
            self._check_count("arrays", count, smallest=self._length.size + 4)
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
        start = self._take(count * struct.calcsize("<" + code))
        values = struct.unpack_from(f"<{count}{code}", self._data, start)
        if kind != _BOOL:
            return list(values)
        if max(values, default=0) > 1:
            raise self.error(f"has the truth value {max(values)}, expected 0 or 1")
        return [value == 1 for value in values]

    def _read_strings(self, count: int) -> list[object]:
        # A vocabulary has hundreds of thousands of strings: local names, and no call of our own per string.
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
            raise self.error(f"string {len(strings)} of {count} runs past {self._end_name()}")
        self.position = position
        return strings

    def _read_name(self) -> str:
        length = self._read(self._length)
        if not 1 <= length <= MAX_NAME_BYTES:
            raise self.error(f"has a name of {length} bytes, expected 1 to {MAX_NAME_BYTES}")
        return self._read_text(length)

    def _read_text(self, length: int) -> str:
        start = self._take(length)
        try:
            return self._data[start : self.position].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"text at byte {start} is not UTF-8") from error

    def _read(self, number: struct.Struct) -> int:
        value: int = number.unpack_from(self._data, self._take(number.size))[0]
        return value

    def _take(self, size: int) -> int:
        """Moves past ``size`` bytes and returns where they start."""
        start = self.position
        if size > self._end - start:
            raise self.error(f"{size} bytes at byte {start} run past {self._end_name()}")
        self.position = start + size
        return start

    def _check_count(self, what: str, count: int, *, smallest: int) -> None:
        left = self._end - self.position
        if count * smallest > left:
            raise self.error(f"claims {count} {what}, but only {left} bytes are left before {self._end_name()}")

    def _end_name(self) -> str:
        if self._end == self.file_size:
            return f"the end of the file at byte {self._end}"
        return f"byte {self._end}, where a header ends at the latest"


def _map(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise LoadError(f"{path} is not a file", hint="give the path of a .gguf file")
        if status.st_size == 0:
            raise FormatError(str(path), "header", "the file is empty", hint=_DAMAGED)
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise LoadError(
            f"{path} cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error


def _alignment(header: _Header, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    # A multiple of 8, says the format; that its tensors start at powers of two is what makes them aligned at all.
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment.bit_count() != 1:
        header.place = "metadata key 'general.alignment'"
        raise header.error(f"is {_shown(alignment)}, expected a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _locate(header: _Header, infos: list[_TensorInfo], *, alignment: int) -> dict[str, _Span]:
    """Where each tensor lies in the file, by name in the file's order; all checks of offsets are here."""
    data_start = _round_up(header.position, alignment)
    spans: dict[str, _Span] = {}
    for name, type_, shape, offset in infos:
        header.place = f"tensor {_shown(name)}"
        if offset % alignment:
            raise header.error(f"its offset {offset} is not a multiple of the alignment {alignment}")
        span = _Span(type_, shape, data_start + offset, math.prod(shape[:-1]) * type_.row_bytes(shape[-1]))
        if span.start + span.size > header.file_size:
            raise header.error(
                f"its data ends at byte {span.start + span.size}, past the end of the file at byte {header.file_size}"
            )
        spans[name] = span
    end, before = data_start, ""
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        if span.start < end:
            header.place = f"tensor {_shown(name)}"
            raise header.error(f"its data at byte {span.start} overlaps that of tensor {_shown(before)}")
        end, before = span.start + span.size, name
    return spans


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _shown(value: object) -> str:
    """For a message: quoted, control characters escaped, and never long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
