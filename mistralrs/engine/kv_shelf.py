"""Blocks of the KV cache on their way to a store on disk and back. Knows names and bytes; no layout and no policy."""

from __future__ import annotations

import hashlib
from typing import Protocol

from mistralrs.engine.kv_store import KvStore


class Blocks(Protocol):
    """The KV cache as bytes."""

    def export_block(self, group: int, block: int) -> bytes:
        """What a block holds, in the layers of a KV group."""

    def import_block(self, group: int, block: int, data: bytes) -> None:
        """Puts that back; raises ValueError if its length is wrong."""


class KvShelf:
    """The scheduler's ``Shelf``: a block is found under its digest and its group."""

    def __init__(self, store: KvStore, blocks: Blocks) -> None:
        self._store = store
        self._blocks = blocks

    def has(self, digest: bytes, group: int) -> bool:
        return _key(digest, group) in self._store

    def load(self, digest: bytes, group: int, block: int) -> bool:
        key = _key(digest, group)
        data = self._store.get(key)
        if data is None:
            return False
        try:
            self._blocks.import_block(group, block, data)
        except ValueError:  # whole, yet of another length: nobody here wrote it
            self._store.discard(key)
            return False
        return True

    def save(self, digest: bytes, group: int, block: int) -> None:
        key = _key(digest, group)
        if key not in self._store:
            self._store.put(key, self._blocks.export_block(group, block))

    def close(self) -> None:
        """Writes what waits."""
        self._store.close()


def _key(digest: bytes, group: int) -> bytes:
    return hashlib.blake2b(digest, digest_size=16, salt=group.to_bytes(4, "little"), person=b"kv group").digest()
