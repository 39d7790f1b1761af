"""A checkpoint: stored tensors by name, still in the mapped files, whatever the format.

Knows no format and nothing of what the tensors are for. Needs neither torch nor numpy.
"""

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
_AT_ONCE = 1 << 16
"""Bytes that are looked at together."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """Rows of a stored matrix, still in the mapped file."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    """As torch would say it, rows first: the reverse of the order in a GGUF or GGML file."""
    data: memoryview
    """All bytes, row after row, format "B". Not to be written: the map is private and writable only so that its
    address can be taken. Keeps the map alive, also after ``Checkpoint.close``. May start at any address."""


class Checkpoint(Protocol):
    """What every format offers."""

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
        """Those that hold tensors."""
        ...

    @property
    def tensors(self) -> Mapping[str, RawTensor]: ...
    def tensor(self, name: str) -> RawTensor:
        """The tensor of that name; FormatError when there is none."""
        ...

    def release(self, tensor: RawTensor) -> None:
        """Gives back the memory pages that lie wholly within the tensor; reading it again fetches them again."""
        ...

    def check_written(self) -> None:
        """FormatError when a file ends in a hole, as a download does whose room was taken before its bytes came."""
        ...

    def place(self, name: str) -> tuple[int, int]:
        """Where a tensor begins: the index of its file, and bytes in it."""
        ...

    def close(self) -> None: ...


class MappedFile(mmap.mmap):
    """A file that is mapped."""

    path: Path
    identity: FileIdentity
    """Of the file when it was mapped."""


class Span(NamedTuple):
    """Where a tensor lies: ``start`` and ``size`` in bytes of the file that is mapped."""

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
        """The tensor of that name; FormatError when there is none."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FormatError(str(self.path), f"tensor {shown(name)}", "is missing")
        return tensor

    def rename(self, names: Mapping[str, str]) -> None:
        """Keeps the tensors that ``names`` has, under the names that it gives them. None may be given twice."""
        assert self._spans is not None
        assert len(set(names.values())) == len(names)
        self._spans = {new: self._spans[old] for old, new in names.items()}
        tensors = {new: replace(self.tensors[old], name=new) for old, new in names.items()}
        self.tensors = MappingProxyType(tensors)

    def release(self, tensor: RawTensor) -> None:
        """Gives back the memory pages that lie wholly within the tensor; reading it again fetches them again."""
        if self._spans is None:
            raise ValueError(f"{self.path} is closed")
        span = self._spans[tensor.name]
        first = round_up(span.start, mmap.PAGESIZE)
        end = (span.start + span.size) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            span.mapping.madvise(mmap.MADV_DONTNEED, first, end - first)

    def check_written(self) -> None:
        """FormatError when all of a file from its last matrix on is zeros: room that was taken for a download whose
        bytes never came. No model has such a matrix and only such vectors behind it."""
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
        """Where a tensor begins: the index of its file, and bytes in it."""
        if self._spans is None:
            raise ValueError(f"{self.path} is closed")
        span = self._spans[name]
        return next(index for index, file in enumerate(self.files) if file is span.mapping), span.start

    def close(self) -> None:
        """Lets go of the maps, which are gone once the last ``RawTensor.data`` in use is."""
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
    """A checkpoint that says of itself what it is, under GGUF's keys.

    The metadata values are bool, int, float, str, or (nested) lists of one of these. They stay after ``close``.
    """

    def __init__(
        self, path: Path, files: Sequence[MappedFile], spans: Mapping[str, Span], *, metadata: dict[str, object]
    ) -> None:
        super().__init__(path, files, spans)
        self.metadata: Mapping[str, object] = MappingProxyType(metadata)

    def require(self, key: str, kind: type[Value]) -> Value:
        """The metadata value under ``key``; FormatError when it is missing or not a ``kind``.

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
        """As ``require``, but ``default`` when the key is missing."""
        return self.require(key, kind) if key in self.metadata else default


def _is_zero(mapping: mmap.mmap, start: int) -> bool:
    """Whether all bytes from ``start`` on are zeros. Looks at the end first, where a sound file has others."""
    for end in range(len(mapping), start, -_AT_ONCE):
        piece = mapping[max(start, end - _AT_ONCE) : end]
        if piece.count(0) < len(piece):
            return False
    return True


def map_file(path: Path, *, hint: str) -> MappedFile:
    """The whole file as private memory that is read when touched.

    Raises LoadError when there is no such file or it cannot be read, FormatError when it is empty.
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
    """The refusal of a pickled checkpoint that is known by its name alone."""
    return LoadError(
        f"{path} is a pickled PyTorch checkpoint, which can run any code when it is read; it is not supported",
        hint="use the model's safetensors or GGUF files; transformers' save_pretrained writes safetensors",
    )
