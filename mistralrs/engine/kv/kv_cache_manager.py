"""Allocates, shares and frees the KV blocks of sequences in all KV groups.

Every group has a pool of its own because its layers have arrays of their own. A block's hash is the same in all groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Protocol

from mistralrs.engine.config import EngineConfig
from mistralrs.engine.kv.block_pool import BlockPool
from mistralrs.engine.sequence import Sequence
from mistralrs.ops.kv_groups import first_block, max_blocks_per_seq


class KvConnector(Protocol):
    """A store in which blocks outlive the pools, found by their hash and their group."""

    def has(self, block_hash: bytes, group: int) -> bool:
        """Returns whether a copy of the block is stored."""
        ...

    def load(self, block_hash: bytes, group: int, block: int) -> bool:
        """Fills a block. Returns False if the stored copy is missing or damaged; ``has`` is then False too."""

    def save(self, block_hash: bytes, group: int, block: int) -> None:
        """Stores a copy of a block unless there is one."""


class KvCacheManager:
    """Allocates blocks to running sequences and frees them.

    In a group without a window, a sequence has blocks for all its known tokens. In a group with a window, it has the
    blocks that later tokens can see, and as many as one step can fill. Blocks that the window has left behind are freed
    at once. Those of the prompt stay findable until their memory is needed, because other prompts may begin alike;
    those of the answer do not. When a sequence ends, the window at its end is retained with the rest for the next turn.
    """

    def __init__(self, config: EngineConfig, connector: KvConnector | None = None) -> None:
        """``connector``: stores blocks that are retained, and is asked for blocks that the pools do not have."""
        max_retained = 0 if config.no_kv_cache else config.prefix_cache_n
        max_evictable = config.max_evictable_blocks if max_retained else 0
        self.pools = [
            BlockPool(group.num_blocks, max_retained=max_retained, max_evictable=max_evictable)
            for group in config.kv_groups
        ]
        self.reuse = max_retained > 0
        self._connector = connector
        self._windows = [group.window for group in config.kv_groups]
        self._slides = any(self._windows)
        self._block_size = config.block_size
        self._step = config.max_batch_tokens
        self._shared_answer_tokens = config.shared_answer_tokens

    @property
    def num_blocks(self) -> int:
        """Blocks of all groups together, as in the other counts."""
        return sum(pool.num_blocks for pool in self.pools)

    @property
    def num_free(self) -> int:
        """Blocks that are not in use, cached ones included."""
        return sum(pool.num_free for pool in self.pools)

    @property
    def num_cached(self) -> int:
        """Blocks that a new sequence could share, in use or not."""
        return sum(pool.num_cached for pool in self.pools)

    def admit(self, sequence: Sequence, *, beside: Collection[Sequence]) -> bool:
        """Gives a sequence without blocks those that it can share and those that it needs; sets ``num_computed``.

        Returns False and changes nothing if the sequence and all that run ``beside`` it would not have room to grow,
        or while one of these computes a block that it could share next.
        """
        while True:
            block_hashes = self._shareable(sequence)
            if self._is_being_computed(sequence, len(block_hashes), beside):
                return False
            computed = len(block_hashes) * self._block_size
            starts = self._first_blocks(computed)
            shared = [block_hashes[start:] for start in starts]
            if not self._has_room(sequence, shared, beside):
                return False
            taken = [self._acquire_shared(group, hashes) for group, hashes in enumerate(shared)]
            if all(len(blocks) == len(hashes) for blocks, hashes in zip(taken, shared, strict=True)):
                break
            for pool, blocks in zip(self.pools, taken, strict=True):  # the connector failed to load a block
                pool.release(blocks)
        counts = self._num_blocks_needed(sequence, computed)
        for pool, start, blocks, count in zip(self.pools, starts, taken, counts, strict=True):
            sequence.block_tables.append([0] * start + blocks + pool.allocate(count - len(block_hashes)))
        sequence.num_window_evicted = starts
        sequence.num_computed = computed
        self._pin(sequence, len(block_hashes))
        return True

    def extend(self, sequence: Sequence, *, ahead: int = 0) -> bool:
        """Gives a running sequence the blocks that its next step needs. Returns False, and gives none, if too few are
        free.

        ``ahead``: draft tokens that the step computes beyond the known tokens.
        """
        if len(sequence.tokens) + ahead <= min(map(len, sequence.block_tables)) * self._block_size:
            return True  # as usual: the last block has room for one more token
        counts = self._num_blocks_needed(sequence, sequence.num_computed, ahead=ahead)
        missing = [max(count - len(table), 0) for count, table in zip(counts, sequence.block_tables, strict=True)]
        if any(missing):
            for pool, count in zip(self.pools, missing, strict=True):
                if count > pool.num_free:
                    return False
            for pool, table, count in zip(self.pools, sequence.block_tables, missing, strict=True):
                table += pool.allocate(count)
        return True

    def trim(self, sequence: Sequence) -> None:
        """Frees the blocks that a running sequence had for draft tokens which were not accepted."""
        counts = self._num_blocks_needed(sequence, sequence.num_computed)
        for pool, table, count in zip(self.pools, sequence.block_tables, counts, strict=True):
            pool.release(table[count:])
            del table[count:]

    def commit(self, sequence: Sequence) -> None:
        """Registers the blocks that a step of a sequence filled, and frees those that no later token can see."""
        if self.reuse:
            self._register(sequence)
        if self._slides:
            starts = self._first_blocks(sequence.num_computed)
            if self._connector is not None:  # prompt blocks are stored, because other prompts may begin alike
                prompt = len(self._pinned(sequence))
                self._save(sequence, sequence.num_window_evicted, [min(start, prompt) for start in starts])
            for pool, table, evicted, start in zip(
                self.pools, sequence.block_tables, sequence.num_window_evicted, starts, strict=True
            ):
                if start > evicted:
                    pool.release(table[evicted:start])
            sequence.num_window_evicted = starts

    def rewind(self, sequence: Sequence) -> None:
        """Sets a running sequence without shared blocks back to its first token. Groups whose window has left blocks
        behind lose all their blocks, because the first ones are needed again."""
        sequence.num_computed = 0
        for pool, table, evicted in zip(self.pools, sequence.block_tables, sequence.num_window_evicted, strict=True):
            if evicted:
                pool.release(table[evicted:])
                table.clear()
        sequence.num_window_evicted = [0] * len(self.pools)

    def release(self, sequence: Sequence, *, retain: bool) -> None:
        """Frees all blocks of a sequence; ``retain`` keeps the full ones for reuse."""
        block_hashes = tuple(sequence.block_hashes(sequence.num_registered, self._block_size))
        pinned = self._pinned(sequence)
        if retain:
            self._save(sequence, sequence.num_window_evicted, [len(block_hashes)] * len(sequence.block_tables))
        for pool, table, evicted in zip(self.pools, sequence.block_tables, sequence.num_window_evicted, strict=True):
            if retain:
                pool.retain(block_hashes)
            pool.unpin(pinned)
            pool.release(table[evicted:])
        sequence.block_tables, sequence.num_window_evicted, sequence.num_registered = [], [], 0

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises AssertionError unless the pools agree with the block tables of the ``running`` sequences."""
        running = list(running)
        pinned = Counter(block_hash for sequence in running for block_hash in self._pinned(sequence))
        for group, pool in enumerate(self.pools):
            in_use = Counter(block for s in running for block in s.block_tables[group][s.num_window_evicted[group] :])
            pool.check_integrity(in_use=in_use, pinned=pinned)

    def _first_blocks(self, position: int) -> list[int]:
        """For each group, the first block that tokens from ``position`` on can see."""
        return [first_block(position, window=window, block_size=self._block_size) for window in self._windows]

    def _num_blocks_needed(self, sequence: Sequence, num_computed: int, *, ahead: int = 0) -> list[int]:
        """For each group, the length that a block table needs: for all known tokens, or with a window for one step."""
        known, size = len(sequence.tokens) + ahead, self._block_size
        soon = min(known, num_computed + self._step)
        return [-(-(soon if window else known) // size) for window in self._windows]

    def _max_blocks(self, sequence: Sequence, group: int) -> int:
        """The most blocks that a sequence has in use until all its known tokens are computed."""
        window, step, size = self._windows[group], self._step, self._block_size
        return max_blocks_per_seq(len(sequence.tokens), window=window, step=step, block_size=size)

    def _missing_blocks(self, sequence: Sequence, group: int) -> int:
        """Blocks that a running sequence may still need until all its known tokens are computed."""
        return self._max_blocks(sequence, group) - (
            len(sequence.block_tables[group]) - sequence.num_window_evicted[group]
        )

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the longest prefix of blocks that need not be computed: every group has all that later tokens
        see."""
        if not (self.reuse and sequence.reuse):
            return []
        # The last known token is always computed: its logits are what the step is for.
        count = (self._num_shareable(sequence) - 1) // self._block_size
        block_hashes = sequence.block_hashes(count, self._block_size)
        while True:
            starts = self._first_blocks(count * self._block_size)
            # Every longer hit would need the first block that is missing, too.
            found = min(start + self._found(group, block_hashes[start:count]) for group, start in enumerate(starts))
            if found == count:
                return block_hashes[:count]
            count = found

    def _num_shareable(self, sequence: Sequence) -> int:
        """Known tokens whose KV depends on the tokens alone."""
        known, answer = len(sequence.tokens), self._shared_answer_tokens
        return known if answer is None else min(known, sequence.num_prompt + answer)

    def _found(self, group: int, block_hashes: list[bytes]) -> int:
        """How many of these blocks, counted from the first, the group's pool or the connector has."""
        pool, connector = self.pools[group], self._connector
        count = len(pool.match(block_hashes))
        if connector is not None:
            while count < len(block_hashes) and (
                pool.has(block_hashes[count]) or connector.has(block_hashes[count], group)
            ):
                count += 1
        return count

    def _has_room(self, sequence: Sequence, shared: list[list[bytes]], beside: Collection[Sequence]) -> bool:
        """Whether each group has room for a sequence with ``shared`` blocks and for all ``beside`` it to grow."""
        for group, (pool, block_hashes) in enumerate(zip(self.pools, shared, strict=True)):
            cached = [block_hash for block_hash in block_hashes if pool.has(block_hash)]
            growth = sum(max(self._missing_blocks(other, group), 1) for other in beside)
            if self._max_blocks(sequence, group) - len(cached) + growth > pool.num_free_beside(pool.blocks_of(cached)):
                return False
        return True

    def _acquire_shared(self, group: int, block_hashes: list[bytes]) -> list[int]:
        """Acquires the group's blocks with these hashes, loading those the pool lacks; returns fewer if that fails."""
        pool, connector = self.pools[group], self._connector
        cached = {block_hash: pool.blocks_of([block_hash])[0] for block_hash in block_hashes if pool.has(block_hash)}
        pool.acquire(list(cached.values()))  # first, so that allocation does not evict them
        blocks: list[int] = []
        for place, block_hash in enumerate(block_hashes):
            if block_hash in cached:
                blocks.append(cached[block_hash])
                continue
            [block] = pool.allocate(1)
            if connector is None or not connector.load(block_hash, group, block):
                pool.release([block, *(cached[later] for later in block_hashes[place:] if later in cached)])
                break
            pool.register(block, block_hash)
            blocks.append(block)
        return blocks

    def _save(self, sequence: Sequence, starts: list[int], stops: list[int]) -> None:
        """Stores registered blocks of a sequence, from ``starts`` to ``stops`` in each group, in the connector."""
        if self._connector is None or not self.reuse:
            return
        block_hashes = sequence.block_hashes(max(stops), self._block_size)
        for group, (table, start, stop) in enumerate(zip(sequence.block_tables, starts, stops, strict=True)):
            for index in range(start, stop):
                self._connector.save(block_hashes[index], group, table[index])

    def _is_being_computed(self, sequence: Sequence, count: int, running: Iterable[Sequence]) -> bool:
        """Whether one of ``running`` is computing the block after the ``count`` blocks that ``sequence`` can share."""
        size = self._block_size
        if not (self.reuse and sequence.reuse) or count >= (self._num_shareable(sequence) - 1) // size:
            return False
        next_hash = sequence.block_hashes(count + 1, size)[count]
        return any(
            other.num_registered <= count < self._num_shareable(other) // size
            and other.block_hashes(count + 1, size)[count] == next_hash
            for other in running
        )

    def _register(self, sequence: Sequence) -> None:
        count = min(sequence.num_computed, self._num_shareable(sequence)) // self._block_size
        known = sequence.num_registered
        if count == known:
            return
        block_hashes = sequence.block_hashes(count, self._block_size)
        for pool, table in zip(self.pools, sequence.block_tables, strict=True):
            for index in range(known, count):
                pool.register(table[index], block_hashes[index])
        self._pin(sequence, count)

    def _pin(self, sequence: Sequence, count: int) -> None:
        """Records that the first ``count`` blocks are registered, and pins those of the prompt."""
        before = len(self._pinned(sequence))
        sequence.num_registered = count
        for pool in self.pools:
            pool.pin(self._pinned(sequence)[before:])

    def _pinned(self, sequence: Sequence) -> list[bytes]:
        count = min(sequence.num_registered, sequence.num_prompt // self._block_size)
        return sequence.block_hashes(count, self._block_size)
