"""The pool of KV blocks of one group: reference counts, reuse by content, and the order of eviction."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from struct import pack


def hash_root(cache_salt: str) -> bytes:
    """Hash (16 bytes) from which a chain starts; ``cache_salt`` names all that decides the KV's content beside
    tokens."""
    return hashlib.blake2b(cache_salt.encode(), digest_size=16, person=b"kv root").digest()


def hash_block(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash (16 bytes) of a full block: of its tokens and, through ``parent``, of all tokens before them."""
    return hashlib.blake2b(parent + pack(f"<{len(tokens)}q", *tokens), digest_size=16, person=b"kv block").digest()


def hash_adapters(parent: bytes, adapters: Sequence[tuple[bytes, float, int]]) -> bytes:
    """Hash (16 bytes) in place of ``parent`` for a block in which adapters begin to act.

    ``adapters``: of each its digest (16 bytes), its weight and the position of the first token on which it acts, in an
    order that depends on these alone. The position counts because equal tokens may be invoked at different places.
    """
    entries = b"".join(digest + pack("<dq", weight, first_position) for digest, weight, first_position in adapters)
    return hashlib.blake2b(parent + entries, digest_size=16, person=b"kv adapters").digest()


class BlockPool:
    """A fixed number of KV blocks with reference counts and reuse by content.

    A block is in one of five states:

    - in use: one or more sequences reference it;
    - empty: it was used before and has no content now;
    - never used: it was never allocated;
    - cached: no sequence references it, but a running or a retained sequence pins its content;
    - evictable: it has content that no sequence pins, and its memory was not needed yet.

    All but those in use are free. A hit makes a cached or an evictable block in use again. Allocation takes empty
    blocks first, then blocks never used, whose memory the system has not committed yet, then the least recently used
    evictable block, then the least recently used cached one.
    """

    def __init__(self, num_blocks: int, *, max_retained: int, max_evictable: int = 0) -> None:
        """``max_retained``: finished sequences whose blocks stay pinned; 0 turns reuse off.

        ``max_evictable``: blocks that may stay without a pin.
        """
        self.num_blocks = num_blocks
        self.reuse = max_retained > 0
        self._max_evictable = max_evictable
        self._max_retained = max_retained
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}
        self._empty: list[int] = []
        self._num_ever_used = 0
        self._cached: dict[int, None] = {}  # least recently used first
        self._evictable: dict[int, None] = {}  # least recently used first
        self._retained: deque[tuple[bytes, ...]] = deque()  # oldest first
        self._pins: Counter[bytes] = Counter()

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` could return."""
        return len(self._empty) + (self.num_blocks - self._num_ever_used) + len(self._cached) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Blocks that a new sequence could share, in use or not."""
        return len(self._by_hash)

    def match(self, block_hashes: Sequence[bytes]) -> list[int]:
        """The blocks of the longest prefix of ``block_hashes`` that the pool has. Adds no references."""
        blocks = []
        for block_hash in block_hashes:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def has(self, block_hash: bytes) -> bool:
        """Whether a block with this content is registered."""
        return block_hash in self._by_hash

    def blocks_of(self, block_hashes: Sequence[bytes]) -> list[int]:
        """The blocks with these hashes, all of which must be registered."""
        return [self._by_hash[block_hash] for block_hash in block_hashes]

    def num_free_beside(self, blocks: Sequence[int]) -> int:
        """Blocks that could still be allocated once ``blocks`` are in use."""
        return self.num_free - sum(block in self._cached or block in self._evictable for block in blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Adds a reference to blocks that ``match`` returned."""
        for block in blocks:
            self._cached.pop(block, None)
            self._evictable.pop(block, None)
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks of undefined content, each with one reference. Raises ValueError if fewer are free."""
        if count > self.num_free:
            raise ValueError(f"{count} blocks requested, {self.num_free} are free")
        blocks = [self._take_free() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def register(self, block: int, block_hash: bytes) -> None:
        """Lets later sequences find a full block that is in use. A block already registered under the hash stays."""
        if block_hash not in self._by_hash:
            self._by_hash[block_hash] = block
            self._hashes[block] = block_hash

    def release(self, blocks: Sequence[int]) -> None:
        """Drops one reference of each block. The last blocks of a sequence are evicted before its first ones."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._file_unreferenced(block)

    def pin(self, block_hashes: Sequence[bytes]) -> None:
        """Keeps blocks with these hashes cached when no sequence references them, until ``unpin``."""
        self._pins.update(block_hashes)
        if self._evictable:
            for block_hash in block_hashes:
                block = self._by_hash.get(block_hash)
                if block in self._evictable:
                    del self._evictable[block]
                    self._cached[block] = None

    def unpin(self, block_hashes: Sequence[bytes]) -> None:
        """Undoes one ``pin`` of each of these hashes."""
        for block_hash in reversed(block_hashes):  # later blocks go first: they are useless without earlier ones
            self._pins[block_hash] -= 1
            if self._pins[block_hash] > 0:
                continue
            del self._pins[block_hash]
            block = self._by_hash.get(block_hash)
            if block is not None and block in self._cached:
                del self._cached[block]
                self._make_evictable(block)

    def retain(self, block_hashes: tuple[bytes, ...]) -> None:
        """Pins the blocks of a sequence that ends, before it releases them, until ``max_retained`` more have ended."""
        if not self.reuse or not block_hashes:
            return
        self._retained.append(block_hashes)
        self.pin(block_hashes)
        if len(self._retained) > self._max_retained:
            self.unpin(self._retained.popleft())

    def check_integrity(self, *, in_use: Counter[int], pinned: Counter[bytes]) -> None:
        """Raises AssertionError unless every block is in exactly one state and all tables agree.

        ``in_use``: references of running sequences to each block; ``pinned``: their pins of each hash.
        """
        never_used = set(range(self._num_ever_used, self.num_blocks))
        places = [set(in_use), set(self._empty), never_used, set(self._cached), set(self._evictable)]
        assert self._references == [in_use[block] for block in range(self.num_blocks)], "references miscounted"
        assert sum(map(len, places)) == self.num_blocks == len(set().union(*places)), "a block has no state or two"
        assert len(self._empty) == len(set(self._empty)), "a block is empty twice"
        named = {block: block_hash for block, block_hash in enumerate(self._hashes) if block_hash is not None}
        assert {block_hash: block for block, block_hash in named.items()} == self._by_hash, "hashes and blocks disagree"
        reusable = set(in_use) | set(self._cached) | set(self._evictable)
        assert set(named) <= reusable, "an empty or a never used block has a hash"
        assert all(self._pins[named[block]] > 0 for block in self._cached), "a cached block that is not pinned"
        assert all(self._pins[named[block]] == 0 for block in self._evictable), "an evictable block that is pinned"
        assert len(self._evictable) <= self._max_evictable, "too many blocks are evictable"
        assert (
            pinned + Counter(block_hash for block_hashes in self._retained for block_hash in block_hashes) == self._pins
        ), "pins miscounted"
        assert len(self._retained) <= self._max_retained, "too many sequences are retained"

    def _take_free(self) -> int:
        if self._empty:
            return self._empty.pop()
        if self._num_ever_used < self.num_blocks:
            self._num_ever_used += 1
            return self._num_ever_used - 1
        places = self._evictable or self._cached
        block = next(iter(places))
        del places[block]
        self._erase(block)
        return block

    def _file_unreferenced(self, block: int) -> None:
        """Files a block without references under cached, evictable or empty."""
        block_hash = self._hashes[block]
        if block_hash is not None and self._pins[block_hash] > 0:
            self._cached[block] = None
        else:
            self._make_evictable(block)

    def _make_evictable(self, block: int) -> None:
        """Keeps a registered block without pins and discards the oldest one beyond the limit; discards other blocks."""
        if self._hashes[block] is None or not self._max_evictable:
            self._discard(block)
            return
        self._evictable[block] = None
        if len(self._evictable) > self._max_evictable:
            oldest = next(iter(self._evictable))
            del self._evictable[oldest]
            self._discard(oldest)

    def _discard(self, block: int) -> None:
        self._erase(block)
        self._empty.append(block)

    def _erase(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._by_hash[block_hash]
            self._hashes[block] = None
