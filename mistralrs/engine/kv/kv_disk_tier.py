"""KV blocks on disk, found by content: what a stopped engine computed need not be computed again.

One file a block, written beside its final name and renamed, with a checksum: whatever a killed process or a full disk
leaves behind reads as missing, never as wrong. Knows block_hashes and bytes; no model, no tensor and no scheduler.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from pathlib import Path
from queue import SimpleQueue

from mistralrs.engine.kv.block_folder import BlockFolder, BlockName
from mistralrs.errors import UsageError

logger = logging.getLogger(__name__)

MAGIC = b"mistralrs kv 1\n\0"
HEAD_BYTES = len(MAGIC) + 32
"""Before a block's own bytes: the magic, its block_hash and their checksum."""
PENDING_BYTES = 256 << 20
"""Of blocks that wait to be written; what comes when so much waits is not kept."""


class KvDiskTier:
    """A folder of blocks, at most ``limit`` bytes of them, least recently used first to go.

    ``get`` and ``in`` are for one thread, the engine's; writing happens in a thread of its own. Several processes may
    share a folder: each counts what it found and wrote itself, and a file that another one removed is missing. Blocks
    of other fingerprints count, and go when their time comes, but are never read.
    """

    def __init__(self, folder: Path, *, limit: int, fingerprint: str) -> None:
        """``fingerprint`` says everything that decides a block's bytes beside its block_hash. Raises UsageError."""
        self.num_lost = 0
        """Blocks that could not be written."""
        name = hashlib.blake2b(fingerprint.encode(), digest_size=16, person=b"kv store").hexdigest()
        self._path = folder
        self._limit = limit
        self._lock = threading.Lock()  # for the index, which the writer changes too
        try:
            self._folder = BlockFolder(folder, name)
            self._index = OrderedDict((found.name, found.size) for found in self._folder.scan())
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

    def __contains__(self, block_hash: bytes) -> bool:
        with self._lock:
            return block_hash in self._pending or self._name(block_hash) in self._index

    def get(self, block_hash: bytes) -> bytes | None:
        """A block's bytes, or None if it is not there or not whole; it is then forgotten."""
        name = self._name(block_hash)
        with self._lock:
            if block_hash in self._pending:
                return self._pending[block_hash]
            if name not in self._index:
                return None
            self._index.move_to_end(name)
        data = self._folder.read(block_hash, limit=HEAD_BYTES + PENDING_BYTES)
        payload = None if data is None else _unwrap(block_hash, data)
        if payload is None:
            self._forget(name, remove=data is not None)
        return payload

    def discard(self, block_hash: bytes) -> None:
        """Removes a block that is of no use."""
        self._forget(self._name(block_hash), remove=True)

    def put(self, block_hash: bytes, payload: bytes) -> None:
        """Has a block written soon, unless it is there already."""
        with self._lock:
            if block_hash in self._pending or self._name(block_hash) in self._index:
                return
            if self._pending_bytes + len(payload) > PENDING_BYTES:
                self.num_lost += 1
                return
            self._pending[block_hash] = payload
            self._pending_bytes += len(payload)
        self._queue.put((block_hash, payload))

    def close(self) -> None:
        """Writes what waits. Idempotent."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()

    def _name(self, block_hash: bytes) -> BlockName:
        return BlockName(self._folder.name, block_hash)

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            block_hash, payload = item
            name, size = self._name(block_hash), HEAD_BYTES + len(payload)
            try:
                self._folder.write(block_hash, _wrap(block_hash, payload))
            except OSError as error:
                self.num_lost += 1
                self._say(error)
                size = 0
            with self._lock:
                del self._pending[block_hash]
                self._pending_bytes -= len(payload)
                if size:
                    self._index[name] = size
                    self._bytes += size
            self._trim()

    def _trim(self) -> None:
        while True:
            with self._lock:
                if self._bytes <= self._limit or not self._index:
                    return
                name = next(iter(self._index))
            self._forget(name, remove=True)

    def _forget(self, name: BlockName, *, remove: bool) -> None:
        with self._lock:
            self._bytes -= self._index.pop(name, 0)
        if not remove:
            return
        try:
            self._folder.remove(name)
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            logger.warning("KV blocks are not kept in %s: %s", self._path, error.strerror)


def _wrap(block_hash: bytes, payload: bytes) -> bytes:
    return MAGIC + block_hash + _checksum(block_hash, payload) + payload


def _unwrap(block_hash: bytes, data: bytes) -> bytes | None:
    payload = data[HEAD_BYTES:]
    return payload if data[:HEAD_BYTES] == MAGIC + block_hash + _checksum(block_hash, payload) else None


def _checksum(block_hash: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16, key=block_hash).digest()
