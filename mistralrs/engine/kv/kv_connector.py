"""Copies blocks between the KV cache and a store on disk."""

from __future__ import annotations

import hashlib
from typing import Protocol

from mistralrs.engine.kv.kv_disk_tier import KvDiskTier


class BlockTransfer(Protocol):
    """Access to the KV cache's blocks as bytes."""

    def export_block(self, group: int, block: int) -> bytes:
        """The bytes of a block in all layers of a KV group."""

    def import_block(self, group: int, block: int, data: bytes) -> None:
        """Writes the bytes that ``export_block`` returned into a block; raises ValueError if their length is wrong."""


class DiskKvConnector:
    """The ``KvConnector`` of a disk tier: blocks are found by their hash and their group."""

    def __init__(self, store: KvDiskTier, blocks: BlockTransfer) -> None:
        self._disk_tier = store
        self._blocks = blocks

    def has(self, block_hash: bytes, group: int) -> bool:
        return _key(block_hash, group) in self._disk_tier

    def load(self, block_hash: bytes, group: int, block: int) -> bool:
        key = _key(block_hash, group)
        data = self._disk_tier.get(key)
        if data is None:
            return False
        try:
            self._blocks.import_block(group, block, data)
        except ValueError:  # intact, but of another length: another program wrote it
            self._disk_tier.discard(key)
            return False
        return True

    def save(self, block_hash: bytes, group: int, block: int) -> None:
        key = _key(block_hash, group)
        if key not in self._disk_tier:
            self._disk_tier.put(key, self._blocks.export_block(group, block))

    def close(self) -> None:
        """Writes the blocks that are still pending."""
        self._disk_tier.close()


def _key(block_hash: bytes, group: int) -> bytes:
    return hashlib.blake2b(block_hash, digest_size=16, salt=group.to_bytes(4, "little"), person=b"kv group").digest()
