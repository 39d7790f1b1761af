"""The fingerprint of all that decides the content of a KV block beside its tokens.

Blocks on disk are found by it, so that two models must never share one. It is a hash of the whole content of the
model's files (BLAKE3), of the settings that change results, and of the code that computes.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from mistralrs.errors import LoadError
from mistralrs.loading.checkpoint import Checkpoint, MappedFile
from mistralrs.loading.digest_cache import DigestCache, FileIdentity, default_folder

logger = logging.getLogger(__name__)

AT_ONCE = 8 << 20
"""Bytes that are hashed before their pages are released."""
_COMPUTING = ("adapters", "loading", "models", "nn", "ops", "quant")
"""Packages whose code decides the results."""


def fingerprint(checkpoint: Checkpoint, contents: Sequence[str], *facts: object) -> str:
    """The fingerprint (64 hex digits) of a model with its settings.

    ``contents``: the digests of all files with tensors, as ``ContentHashing.result`` gives them. ``facts``: all else
    that changes results; the ``repr`` of each must be complete.
    """
    from blake3 import blake3

    digest = blake3(repr((code_digest(), tuple(contents), facts)).encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        place = checkpoint.place(name)
        digest.update(repr((name, tensor.type.name, tensor.shape, place)).encode())
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """The digest of the sources that decide results; between releases these change while the version does not."""
    from blake3 import blake3

    digest = blake3()
    root = Path(__file__).parents[1]
    for path in sorted(path for package in _COMPUTING for path in (root / package).rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


class ContentHashing:
    """Hashes files in a thread while their weights are packed; a context manager.

    A file whose digest is in the cache is not read. Others are read in order and ahead of the packing, so that hashing
    and packing need the disk only once.
    """

    def __init__(self, files: Sequence[MappedFile], *, folder: Path | None = None) -> None:
        """``folder``: holds the cache of digests; None for the user's cache folder, if there is a home folder."""
        self._files = files
        found = folder or default_folder()
        self._cache = None if found is None else DigestCache(found)
        self._digests: list[str] = []
        self._error: Exception | None = None
        self._stop = Event()
        self._thread = Thread(target=self._hash_all, name="mistralrs-hash", daemon=True)

    def __enter__(self) -> Self:
        if self._files:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._files:
            self._thread.join()

    def result(self) -> tuple[str, ...]:
        """The digest of each file (64 hex digits). To be called when all weights have been read.

        Raises ``LoadError`` if a file has changed since it was mapped, because its weights may then be a mixture.
        """
        if self._files:
            self._thread.join()
        for file in self._files:
            try:
                same = FileIdentity.of(os.stat(file.path)) == file.identity
            except OSError:
                same = False
            if not same:
                raise LoadError(
                    f"{file.path} changed while it was loaded", hint="load it again when nothing writes to it"
                )
        if self._error is not None:
            raise self._error
        return tuple(self._digests)

    def _hash_all(self) -> None:
        try:
            for file in self._files:
                digest = None if self._cache is None else self._cache.get(file.identity)
                if digest is None:
                    digest = self._hash(file)
                    if digest is None:
                        return
                    self._remember(file, digest)
                self._digests.append(digest)
        except Exception as error:  # ``result`` raises it
            self._error = error

    def _hash(self, file: MappedFile) -> str | None:
        """The file's digest as `b3sum` prints it; None if hashing was stopped."""
        from blake3 import blake3

        size, view = len(file), memoryview(file)
        # its own threads, because the library's global pool would not survive a fork
        digest = blake3(max_threads=os.cpu_count() or 1)
        for start in range(0, size, AT_ONCE):
            if self._stop.is_set():
                return None
            end = min(start + AT_ONCE, size)
            if end < size:
                file.madvise(mmap.MADV_WILLNEED, end, min(AT_ONCE, size - end))
            digest.update(view[start:end])
            file.madvise(mmap.MADV_DONTNEED, start, end - start)
        return digest.hexdigest()

    def _remember(self, file: MappedFile, digest: str) -> None:
        if not file.identity.is_stable():
            return
        try:
            if self._cache is None:
                raise OSError("there is no home folder")
            self._cache.put(file.identity, digest)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning("the digest of %s is computed anew at each start: %s", file.path, reason)
