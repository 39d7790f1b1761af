"""KV blocks on disk, found by content: what a stopped engine computed need not be computed again.

One file a block, written beside its final name and renamed, with a checksum: whatever a killed process or a full disk
leaves behind reads as missing, never as wrong. Knows digests and bytes; no model, no tensor and no scheduler.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from queue import SimpleQueue

from mistralrs.errors import UsageError

logger = logging.getLogger(__name__)

MAGIC = b"mistralrs kv 1\n\0"
SUFFIX = ".kv"
PENDING_BYTES = 256 << 20
"""Of blocks that wait to be written; what comes when so much waits is not kept."""
STALE_SECONDS = 60.0
"""Half-written files older than this belong to no living writer."""


class KvStore:
    """A folder of blocks, at most ``limit`` bytes of them, least recently used first to go.

    ``get`` and ``in`` are for one thread, the engine's; writing happens in a thread of its own. Several processes may
    share a folder: each counts what it found and wrote itself, and a file that another one removed is missing.
    """

    def __init__(self, folder: Path, *, limit: int, fingerprint: str) -> None:
        """``fingerprint`` says everything that decides a block's bytes beside its digest. Raises UsageError."""
        self.num_lost = 0
        """Blocks that could not be written."""
        name = hashlib.blake2b(fingerprint.encode(), digest_size=16, person=b"kv store").hexdigest()
        self._folder = folder / name
        self._limit = limit
        self._lock = threading.Lock()  # for the index, which the writer changes too
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._index = self._scan()
        except OSError as error:
            raise UsageError(
                f"{folder} cannot hold KV blocks: {error.strerror}", hint="name a folder that may be written"
            ) from error
        self._bytes = sum(self._index.values())
        self._queue: SimpleQueue[tuple[bytes, bytes] | None] = SimpleQueue()
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._said = False
        self._trim()
        self._writer = threading.Thread(target=self._write_all, name="mistralrs-kv-store", daemon=True)
        self._writer.start()

    def __contains__(self, digest: bytes) -> bool:
        with self._lock:
            return digest in self._pending or digest in self._index

    def get(self, digest: bytes) -> bytes | None:
        """A block's bytes, or None if it is not there or not whole; it is then forgotten."""
        with self._lock:
            if digest in self._pending:
                return self._pending[digest]
            if digest not in self._index:
                return None
            self._index.move_to_end(digest)
        path = self._path(digest)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            data = b""
        payload = _unwrap(digest, data)
        if payload is None:
            self._forget(digest)
        return payload

    def put(self, digest: bytes, payload: bytes) -> None:
        """Has a block written soon, unless it is there already."""
        with self._lock:
            if digest in self._pending or digest in self._index:
                return
            if self._pending_bytes + len(payload) > PENDING_BYTES:
                self.num_lost += 1
                return
            self._pending[digest] = payload
            self._pending_bytes += len(payload)
        self._queue.put((digest, payload))

    def close(self) -> None:
        """Writes what waits. Idempotent."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            digest, payload = item
            try:
                size = self._write(digest, payload)
            except OSError as error:
                self.num_lost += 1
                self._say(error)
                size = None
            with self._lock:
                del self._pending[digest]
                self._pending_bytes -= len(payload)
                if size is not None:
                    self._index[digest] = size
                    self._bytes += size
            self._trim()

    def _write(self, digest: bytes, payload: bytes) -> int:
        path = self._path(digest)
        part = path.with_name(f"{path.stem}.{os.getpid()}.part")
        data = _wrap(digest, payload)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return len(data)

    def _trim(self) -> None:
        while True:
            with self._lock:
                if self._bytes <= self._limit or not self._index:
                    return
                digest = next(iter(self._index))
            self._forget(digest)

    def _forget(self, digest: bytes) -> None:
        with self._lock:
            self._bytes -= self._index.pop(digest, 0)
        try:
            self._path(digest).unlink(missing_ok=True)
        except OSError as error:
            self._say(error)

    def _scan(self) -> OrderedDict[bytes, int]:
        """What is there, least recently used first."""
        found: list[tuple[float, bytes, int]] = []
        for entry in os.scandir(self._folder):
            status = entry.stat()
            if entry.name.endswith(".part") and status.st_mtime < time.time() - STALE_SECONDS:
                os.unlink(entry.path)
            elif entry.name.endswith(SUFFIX) and len(entry.name) == 32 + len(SUFFIX):
                found.append((status.st_mtime, bytes.fromhex(entry.name.removesuffix(SUFFIX)), status.st_size))
        return OrderedDict((digest, size) for _, digest, size in sorted(found))

    def _path(self, digest: bytes) -> Path:
        return self._folder / (digest.hex() + SUFFIX)

    def _say(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            logger.warning("KV blocks are not kept in %s: %s", self._folder.parent, error.strerror)


def _wrap(digest: bytes, payload: bytes) -> bytes:
    return MAGIC + digest + _checksum(digest, payload) + payload


def _unwrap(digest: bytes, data: bytes) -> bytes | None:
    start = len(MAGIC) + 32
    payload = data[start:]
    return payload if data[:start] == MAGIC + digest + _checksum(digest, payload) else None


def _checksum(digest: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16, key=digest).digest()
