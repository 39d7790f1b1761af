"""A checkpoint of any format: stored tensors by name, in mapped files."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Protocol, Self, TypeVar

from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.cursor import round_up, shown
from mistralrs.loading.digest_cache import FileIdentity
from mistralrs.quant.types import QuantType

Value = TypeVar("Value", bool, int, float, str, list[object])
Default = TypeVar("Default")
_CHUNK_BYTES = 1 << 16
"""Bytes that are checked at once."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """The rows of a stored tensor, in the mapped file."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    """The shape in torch's order, rows first, which is the reverse of the order in GGUF and GGML files."""
    data: memoryview
    """All bytes, row after row, with format "B". Must not be written: the map is writable (and private) only so that
    its address can be taken. Keeps the map alive, also after ``Checkpoint.close``. May start at any address."""


class Checkpoint(Protocol):
    """The interface of a checkpoint of any format."""

    @property
    def path(self) -> Path:
        """The file or folder that was opened."""
        ...

    @property
    def file_bytes(self) -> int:
        """Bytes of all files together."""
        ...

    @property
    def files(self) -> Sequence[MappedFile]:
        """The files that have tensors."""
        ...

    @property
    def tensors(self) -> Mapping[str, RawTensor]:
        """All tensors by name."""
        ...

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name. Raises FormatError if there is none."""
        ...

    def release(self, tensor: RawTensor) -> None:
        """Releases the memory pages that lie wholly within the tensor. A later read loads them again."""
        ...

    def check_written(self) -> None:
        """Raises FormatError if a file ends in zeros, as an unfinished download does whose size was set beforehand."""
        ...

    def place(self, name: str) -> tuple[int, int]:
        """The start of a tensor: the index of its file, and the offset in bytes."""
        ...

    def close(self) -> None:
        """Unmaps the files once nothing refers to their tensors."""
        ...


class MappedFile(mmap.mmap):
    """A mapped file."""

    path: Path
    identity: FileIdentity
    """The identity of the file when it was mapped."""


class Span(NamedTuple):
    """The place of a tensor: ``start`` and ``size`` in bytes of the mapped file."""

    mapping: MappedFile
    type: QuantType
    shape: tuple[int, ...]
    start: int
    size: int


class MappedCheckpoint:
    """A ``Checkpoint`` over maps of whole files; a context manager."""

    def __init__(self, path: Path, files: Sequence[MappedFile], spans: Mapping[str, Span]) -> None:
        self.path = path
        used = {id(span.mapping) for span in spans.values()}
        self.files: Sequence[MappedFile] = [file for file in files if id(file) in used]
        self.file_bytes = sum(map(len, files))
        views = {id(file): memoryview(file) for file in files}
        self.tensors: Mapping[str, RawTensor] = MappingProxyType(
            {
                name: RawTensor(name, span.type, span.shape, views[id(span.mapping)][span.start :][: span.size])
                for name, span in spans.items()
            }
        )
        self._spans: Mapping[str, Span] | None = spans

    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name. Raises FormatError if there is none."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FormatError(str(self.path), f"tensor {shown(name)}", "is missing")
        return tensor

    def rename(self, names: Mapping[str, str]) -> None:
        """Keeps the tensors in ``names`` (old name to new name) under their new names, which must be distinct."""
        assert self._spans is not None
        assert len(set(names.values())) == len(names)
        self._spans = {new: self._spans[old] for old, new in names.items()}
        tensors = {new: replace(self.tensors[old], name=new) for old, new in names.items()}
        self.tensors = MappingProxyType(tensors)

    def release(self, tensor: RawTensor) -> None:
        """Releases the memory pages that lie wholly within the tensor. A later read loads them again."""
        if self._spans is None:
            raise ValueError(f"{self.path} is closed")
        span = self._spans[tensor.name]
        first = round_up(span.start, mmap.PAGESIZE)
        end = (span.start + span.size) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            span.mapping.madvise(mmap.MADV_DONTNEED, first, end - first)

    def check_written(self) -> None:
        """Raises FormatError if a file has only zeros from its last matrix on, as after a download that did not end.
        No model has such a matrix with only such vectors behind it."""
        last: dict[int, Span] = {}
        for span in (self._spans or {}).values():
            before = last.get(id(span.mapping))
            if len(span.shape) > 1 and (before is None or before.start < span.start):
                last[id(span.mapping)] = span
        for span in last.values():
            if span.size and _is_zero(span.mapping, span.start):
                size = len(span.mapping) - span.start
                reason = f"the last {size} bytes of the file are zeros: the download did not end"
                raise FormatError(str(self.path), "data", reason)

    def place(self, name: str) -> tuple[int, int]:
        """The start of a tensor: the index of its file, and the offset in bytes."""
        if self._spans is None:
            raise ValueError(f"{self.path} is closed")
        span = self._spans[name]
        return next(index for index, file in enumerate(self.files) if file is span.mapping), span.start

    def close(self) -> None:
        """Drops the maps. Each is unmapped once no ``RawTensor.data`` of it is in use."""
        self.files = ()
        self.tensors = MappingProxyType({})
        self._spans = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DescribedCheckpoint(MappedCheckpoint):
    """A checkpoint that has metadata, under GGUF's keys.

    The values are bool, int, float, str, or (nested) lists of one of these. They stay available after ``close``.
    """

    def __init__(
        self, path: Path, files: Sequence[MappedFile], spans: Mapping[str, Span], *, metadata: dict[str, object]
    ) -> None:
        super().__init__(path, files, spans)
        self.metadata: Mapping[str, object] = MappingProxyType(metadata)

    def require(self, key: str, kind: type[Value]) -> Value:
        """The metadata value under ``key``. Raises FormatError if it is missing or not a ``kind``.

        A float may be stored as an integer; nothing else is converted.
        """
        if key not in self.metadata:
            raise FormatError(str(self.path), f"metadata key {shown(key)}", "is missing")
        value = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            reason = f"is of type {type(value).__name__}, expected {kind.__name__}"
            raise FormatError(str(self.path), f"metadata key {shown(key)}", reason)
        return value

    def get(self, key: str, kind: type[Value], *, default: Default) -> Value | Default:
        """Like ``require``, but returns ``default`` if the key is missing."""
        return self.require(key, kind) if key in self.metadata else default


def _is_zero(mapping: mmap.mmap, start: int) -> bool:
    """Returns whether all bytes from ``start`` on are zeros. It checks the end first: intact files end in data."""
    for end in range(len(mapping), start, -_CHUNK_BYTES):
        piece = mapping[max(start, end - _CHUNK_BYTES) : end]
        if piece.count(0) < len(piece):
            return False
    return True


def map_file(path: Path, *, hint: str) -> MappedFile:
    """A private map of the whole file, which is read on access.

    Raises LoadError if the file is missing or cannot be read, FormatError if it is empty.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise LoadError(f"{path} is not a file", hint="give the path of a model file")
        if status.st_size == 0:
            raise FormatError(str(path), "header", "the file is empty", hint=hint)
        with path.open("rb") as file:
            mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_COPY)
            mapped.path, mapped.identity = path, FileIdentity.of(os.fstat(file.fileno()))
            return mapped
    except OSError as error:
        raise LoadError(
            f"{path} cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error


def pickle_error(path: Path) -> LoadError:
    """The error for a pickled checkpoint, which is recognized by its name alone."""
    return LoadError(
        f"{path} is a pickled PyTorch checkpoint, which can run any code when it is read; it is not supported",
        hint="use the model's safetensors or GGUF files; transformers' save_pretrained writes safetensors",
    )
