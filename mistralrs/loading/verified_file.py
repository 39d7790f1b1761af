"""Verifies the files of a model: their structure, their sizes and, where one is known, the checksum of each.

A checksum is known from the caller, from ``NAME.sha256`` or ``SHA256SUMS`` beside the file, and from the hub's cache,
which names files after it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mistralrs.errors import LoadError
from mistralrs.files import read_text
from mistralrs.loading.architecture_lookup import kind_of
from mistralrs.loading.checkpoint import MappedFile
from mistralrs.loading.checkpoint_parts import count_parameters
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.progress import Progress

SUMS = "SHA256SUMS"
_SUMS_BYTES = 1 << 20
_PIECE = 8 << 20
_LINE = re.compile(r"(?P<digest>[0-9a-fA-F]{64})(?: [ *](?P<name>.+))?")


class ChecksumError(LoadError):
    """A file's content is not that of its checksum."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """A known checksum."""

    algorithm: str
    """``sha256``, or ``git-sha1``, by which the hub names small files."""
    digest: str
    source: str
    """The place that it is known from."""


@dataclass(frozen=True, slots=True)
class VerifiedPart:
    """A file that is sound."""

    path: Path
    nbytes: int
    checksum: Checksum | None
    """The checksum that it has; None: none is known."""


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """A model whose files are sound."""

    path: Path
    container: str
    tensors: int
    parameters: int
    types: tuple[tuple[str, int], ...]
    """Names of types with their numbers of tensors, the most frequent first."""
    parts: tuple[VerifiedPart, ...]


def verify(path: Path, *, sha256: str | None = None, progress: Progress | None = None) -> VerifiedFile:
    """Returns what the file or folder at ``path`` holds. ``sha256``: the checksum that a single file must have.

    Raises ``FormatError`` for a structure that is broken or ends too early, ``ChecksumError`` for other content than
    its checksum's, and ``LoadError`` for a file that cannot be read or is no model.
    """
    with _opened(path) as (file, container):
        file.check_written()
        if sha256 is not None and len(file.files) != 1:
            raise LoadError(
                f"{path} has {len(file.files)} files, and one checksum was given",
                hint=f"a file {SUMS} beside them has a line for each",
            )
        return VerifiedFile(
            path,
            container,
            len(file.tensors),
            count_parameters(file),
            tuple(Counter(tensor.type.name for tensor in file.tensors.values()).most_common()),
            tuple(_verified(part, sha256, progress) for part in file.files),
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[SafetensorsFile | GgmlFile | GgufFile, str]]:
    kind = kind_of(path)
    if kind == "safetensors":
        with SafetensorsFile.open(path, reads_config=False) as file:
            yield file, "safetensors"
    elif kind == "ggml":
        with GgmlFile.open(path) as ggml:
            yield ggml, ggml.version
    else:
        with GgufFile.open(path) as gguf:
            yield gguf, f"GGUF version {gguf.version}"


def _verified(file: MappedFile, given: str | None, progress: Progress | None) -> VerifiedPart:
    known = Checksum("sha256", given.lower(), "the caller") if given else known_checksum(file.path)
    if known is not None:
        found = _digest(file, known.algorithm, progress)
        if found != known.digest:
            raise ChecksumError(
                f"{file.path}: its {known.algorithm} is {found}, and {known.digest} is that of {known.source}",
                hint="the file is damaged or another one: fetch it again",
            )
    return VerifiedPart(file.path, len(file), known)


def known_checksum(path: Path) -> Checksum | None:
    """Returns the checksum that is known for a file; None: none is. Raises ``LoadError`` for a list that is none."""
    beside = path.with_name(f"{path.name}.sha256")
    for place, needs_name in ((beside, False), (path.with_name(SUMS), True)):
        if place.is_file() and (digest := _listed(place, path.name, needs_name=needs_name)):
            return Checksum("sha256", digest, str(place))
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", blob.name):
        return Checksum("sha256" if len(blob.name) == 64 else "git-sha1", blob.name, "the hub's cache")
    return None


def _listed(place: Path, name: str, *, needs_name: bool) -> str | None:
    """Returns the checksum of ``name`` in a list as ``sha256sum`` writes it. ``needs_name``: a line without counts
    not.
    """
    hint = "each line of it is a checksum and a name, as sha256sum writes them"
    for line in read_text(place, limit=_SUMS_BYTES, hint=hint).splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            if line.strip():
                raise LoadError(f"{place} is no list of checksums", hint=hint)
            continue
        listed = match["name"]
        if (listed is None and not needs_name) or (listed is not None and Path(listed).name == name):
            return match["digest"].lower()
    return None


def _digest(file: MappedFile, algorithm: str, progress: Progress | None) -> str:
    digest = (
        hashlib.sha256() if algorithm == "sha256" else hashlib.sha1(b"blob %d\0" % len(file), usedforsecurity=False)
    )
    with file.path.open("rb", buffering=0) as content:
        done = 0
        while piece := content.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            if progress is not None:
                progress(f"checksum of {file.path.name}", done, len(file))
    return digest.hexdigest()
