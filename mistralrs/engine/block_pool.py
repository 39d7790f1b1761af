"""The pool of KV blocks: who holds a block, which blocks can be reused, which one is given out next.

Knows block numbers, token ids and digests; no tensor, no request and no model.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from struct import pack


def root_digest(identity: str) -> bytes:
    """Digest (16 bytes) that a chain starts from; ``identity`` says what beside the tokens decides the KV's content."""
    return hashlib.blake2b(identity.encode(), digest_size=16, person=b"kv root").digest()


def chain_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Digest (16 bytes) of a full block: of its tokens and, through ``parent``, of all that precedes them."""
    return hashlib.blake2b(parent + pack(f"<{len(tokens)}q", *tokens), digest_size=16, person=b"kv block").digest()


class BlockPool:
    """A fixed number of KV blocks with reference counts and reuse by content.

    A block is in one of five places: held (by one or more sequences), clean (written before, worth nothing now),
    untouched (never given out), cached (nobody holds it, but somebody vouches for its content: a running sequence or
    one that is kept), or spilled (nobody vouches for it any more, and nobody has needed the memory yet). All but the
    held ones are free: a hit revives a cached or a spilled block, and allocation takes clean, then untouched, then the
    least recently used spilled, then such a cached block. Untouched ones come second because their memory is not yet
    paid for.
    """

    def __init__(self, num_blocks: int, *, keep_sequences: int, spill_blocks: int = 0) -> None:
        """``keep_sequences`` finished sequences keep their blocks cached; 0 turns reuse off.

        ``spill_blocks``: blocks of older ones that may stay.
        """
        self.num_blocks = num_blocks
        self.reuse = keep_sequences > 0
        self._spill_blocks = spill_blocks
        self._keep_sequences = keep_sequences
        self._references = [0] * num_blocks
        self._digests: list[bytes | None] = [None] * num_blocks
        self._by_digest: dict[bytes, int] = {}
        self._clean: list[int] = []
        self._num_touched = 0
        self._cached: dict[int, None] = {}  # least recently used first
        self._spilled: dict[int, None] = {}  # least recently used first
        self._kept: deque[tuple[bytes, ...]] = deque()  # oldest first
        self._vouchers: Counter[bytes] = Counter()

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` could give out."""
        return len(self._clean) + (self.num_blocks - self._num_touched) + len(self._cached) + len(self._spilled)

    @property
    def num_cached(self) -> int:
        """Blocks that a new sequence could share, held or not."""
        return len(self._by_digest)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks of the longest prefix of ``digests`` that the pool has. Takes hold of nothing."""
        blocks = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def has(self, digest: bytes) -> bool:
        """A block with this content can be found."""
        return digest in self._by_digest

    def blocks_of(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks with these contents, all of which the pool has."""
        return [self._by_digest[digest] for digest in digests]

    def num_free_beside(self, blocks: Sequence[int]) -> int:
        """Blocks that could still be allocated once ``blocks`` are held."""
        return self.num_free - sum(block in self._cached or block in self._spilled for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """Adds a reference to blocks that ``match`` returned."""
        for block in blocks:
            self._cached.pop(block, None)
            self._spilled.pop(block, None)
            self._references[block] += 1

    def allocate(self, count: int) -> list[int]:
        """``count`` blocks of unknown content, each with one reference. The caller has looked at ``num_free``."""
        if count > self.num_free:
            raise ValueError(f"{count} blocks wanted, {self.num_free} are free")
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def register(self, block: int, digest: bytes) -> None:
        """Makes a held, full block findable. Where another block has the same content already, that one stays."""
        if digest not in self._by_digest:
            self._by_digest[digest] = block
            self._digests[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Gives one reference of each block back. The end of a sequence becomes older than its beginning."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._settle(block)

    def vouch(self, digests: Sequence[bytes]) -> None:
        """From now on, blocks with this content stay findable when nobody holds them."""
        self._vouchers.update(digests)
        if self._spilled:
            for digest in digests:
                block = self._by_digest.get(digest)
                if block in self._spilled:
                    del self._spilled[block]
                    self._cached[block] = None

    def disown(self, digests: Sequence[bytes]) -> None:
        """Takes back what ``vouch`` said."""
        for digest in reversed(digests):  # what follows is worth nothing without what precedes it
            self._vouchers[digest] -= 1
            if self._vouchers[digest] > 0:
                continue
            del self._vouchers[digest]
            block = self._by_digest.get(digest)
            if block is not None and block in self._cached:
                del self._cached[block]
                self._spill(block)

    def keep(self, digests: tuple[bytes, ...]) -> None:
        """Vouches for the blocks of a sequence that ends, before it releases them, until too many have ended since."""
        if not self.reuse or not digests:
            return
        self._kept.append(digests)
        self.vouch(digests)
        if len(self._kept) > self._keep_sequences:
            self.disown(self._kept.popleft())

    def check_integrity(self, *, held: Counter[int], vouched: Counter[bytes]) -> None:
        """Raises AssertionError unless every block is in exactly one place and all tables agree.

        ``held``: how often running sequences hold each block; ``vouched``: for what they vouch.
        """
        untouched = set(range(self._num_touched, self.num_blocks))
        places = [set(held), set(self._clean), untouched, set(self._cached), set(self._spilled)]
        assert self._references == [held[block] for block in range(self.num_blocks)], "references miscounted"
        assert sum(map(len, places)) == self.num_blocks == len(set().union(*places)), "a block is lost or in two places"
        assert len(self._clean) == len(set(self._clean)), "a block is clean twice"
        named = {block: digest for block, digest in enumerate(self._digests) if digest is not None}
        assert {digest: block for block, digest in named.items()} == self._by_digest, "digests and blocks disagree"
        reusable = set(held) | set(self._cached) | set(self._spilled)
        assert set(named) <= reusable, "a free block that nobody can reuse has a digest"
        assert all(self._vouchers[named[block]] > 0 for block in self._cached), "a cached block that nobody vouches for"
        assert all(self._vouchers[named[block]] == 0 for block in self._spilled), "a spilled block that is vouched for"
        assert len(self._spilled) <= self._spill_blocks, "too many blocks are spilled"
        assert vouched + Counter(digest for digests in self._kept for digest in digests) == self._vouchers, "miscounted"
        assert len(self._kept) <= self._keep_sequences, "too many sequences are kept"

    def _take(self) -> int:
        if self._clean:
            return self._clean.pop()
        if self._num_touched < self.num_blocks:
            self._num_touched += 1
            return self._num_touched - 1
        places = self._spilled or self._cached
        block = next(iter(places))
        del places[block]
        self._erase(block)
        return block

    def _settle(self, block: int) -> None:
        """Finds the place of a block that nobody holds."""
        digest = self._digests[block]
        if digest is not None and self._vouchers[digest] > 0:
            self._cached[block] = None
        else:
            self._spill(block)

    def _spill(self, block: int) -> None:
        """Lets a block stay that nobody vouches for, if it can be found, and the one that has stayed longest go."""
        if self._digests[block] is None or not self._spill_blocks:
            self._discard(block)
            return
        self._spilled[block] = None
        if len(self._spilled) > self._spill_blocks:
            oldest = next(iter(self._spilled))
            del self._spilled[oldest]
            self._discard(oldest)

    def _discard(self, block: int) -> None:
        self._erase(block)
        self._clean.append(block)

    def _erase(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digests[block] = None
