"""KV blocks on disk, found by content, so that an engine need not recompute what an earlier one computed.

Each block is one file with a checksum, written under another name and renamed: a file that a killed process or a full
disk left incomplete reads as missing, never as wrong.
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
HEADER_BYTES = len(MAGIC) + 32
"""Bytes before a block's payload: the magic, the block hash and the checksum."""
PENDING_BYTES = 256 << 20
"""Bytes of blocks that may wait to be written; blocks that come beyond it are dropped."""


class KvDiskTier:
    """A folder of at most ``limit`` bytes of blocks; the least recently used ones are removed first.

    ``get`` and ``in`` are for one thread, the engine's; another thread writes. Several processes may share a folder:
    each counts the files that it found or wrote, and a file that another process removed reads as missing. Blocks of
    other fingerprints count and are removed in their turn, but are never read.
    """

    def __init__(self, folder: Path, *, limit: int, fingerprint: str) -> None:
        """``fingerprint`` names all that decides a block's bytes beside its hash. Raises UsageError for a bad
        folder."""
        self.num_lost = 0
        """Blocks that were not written, because of an error or a full queue."""
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
        self._warned = False
        self._trim()
        self._writer = threading.Thread(target=self._write_all, name="mistralrs-kv-store", daemon=True)
        self._writer.start()

    def __contains__(self, block_hash: bytes) -> bool:
        with self._lock:
            return block_hash in self._pending or self._name(block_hash) in self._index

    def get(self, block_hash: bytes) -> bytes | None:
        """A block's bytes; None if it is missing or damaged, and it is then dropped from the index."""
        name = self._name(block_hash)
        with self._lock:
            if block_hash in self._pending:
                return self._pending[block_hash]
            if name not in self._index:
                return None
            self._index.move_to_end(name)
        data = self._folder.read(block_hash, limit=HEADER_BYTES + PENDING_BYTES)
        payload = None if data is None else _unwrap(block_hash, data)
        if payload is None:
            self._forget(name, remove=data is not None)
        return payload

    def discard(self, block_hash: bytes) -> None:
        """Removes a block that cannot be used."""
        self._forget(self._name(block_hash), remove=True)

    def put(self, block_hash: bytes, payload: bytes) -> None:
        """Queues a block to be written unless it is stored already."""
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
        """Writes the queued blocks and stops the writer. Idempotent."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()

    def _name(self, block_hash: bytes) -> BlockName:
        return BlockName(self._folder.name, block_hash)

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            block_hash, payload = item
            name, size = self._name(block_hash), HEADER_BYTES + len(payload)
            try:
                self._folder.write(block_hash, _wrap(block_hash, payload))
            except OSError as error:
                self.num_lost += 1
                self._warn_once(error)
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
            self._warn_once(error)

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("KV blocks are not kept in %s: %s", self._path, error.strerror)


def _wrap(block_hash: bytes, payload: bytes) -> bytes:
    return MAGIC + block_hash + _checksum(block_hash, payload) + payload


def _unwrap(block_hash: bytes, data: bytes) -> bytes | None:
    payload = data[HEADER_BYTES:]
    return payload if data[:HEADER_BYTES] == MAGIC + block_hash + _checksum(block_hash, payload) else None


def _checksum(block_hash: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16, key=block_hash).digest()
