"""The KV blocks of sequences in all groups: what is shared, what is taken, what is findable, what a window has passed.

Every group has a pool of its own, because its layers have arrays of their own; a block's block_hash is the same in all.
Knows positions and blocks; no plan, no tensor and no model.
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
    """Where blocks outlive the pools, found by their block_hash and their group."""

    def has(self, block_hash: bytes, group: int) -> bool: ...

    def load(self, block_hash: bytes, group: int, block: int) -> bool:
        """Fills a block; False if it turns out not to be there, which ``has`` then says too."""

    def save(self, block_hash: bytes, group: int, block: int) -> None:
        """Keeps a copy of a block, unless there is one."""


class KvCacheManager:
    """Gives blocks to running sequences and takes them back.

    In a group without a window a sequence has blocks for all tokens that it knows. In one with a window it has those
    that tokens to come can see, and as many as one step can fill. What a window has passed is given back at once: of
    the prompt it stays findable as long as nobody needs the memory, because other prompts may begin alike; of the
    answer it is forgotten. When a sequence ends, the window at its end is kept with the rest, for the next turn.
    """

    def __init__(self, config: EngineConfig, connector: KvConnector | None = None) -> None:
        """``connector``: where to put what is kept, and to look for what the pools do not have."""
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

    @property
    def num_blocks(self) -> int:
        """Of all groups, as in the other counts."""
        return sum(pool.num_blocks for pool in self.pools)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return sum(pool.num_free for pool in self.pools)

    @property
    def num_cached(self) -> int:
        """Blocks that a new sequence could share, held or not."""
        return sum(pool.num_cached for pool in self.pools)

    def admit(self, sequence: Sequence, *, beside: Collection[Sequence]) -> bool:
        """Gives a sequence that has no blocks what it can share and needs; sets how much of it is computed.

        Returns False, with nothing changed, unless it and all that run ``beside`` it have room to grow; also while one
        of those computes what it could share next.
        """
        while True:
            block_hashes = self._shareable(sequence)
            if self._is_coming(sequence, len(block_hashes), beside):
                return False
            computed = len(block_hashes) * self._block_size
            starts = self._first_blocks(computed)
            shared = [block_hashes[start:] for start in starts]
            if not self._has_room(sequence, shared, beside):
                return False
            taken = [self._take(group, wanted) for group, wanted in enumerate(shared)]
            if all(len(blocks) == len(wanted) for blocks, wanted in zip(taken, shared, strict=True)):
                break
            for pool, blocks in zip(self.pools, taken, strict=True):  # the connector did not have what it said
                pool.release(blocks)
        wanted = self._wanted(sequence, computed)
        for pool, start, blocks, count in zip(self.pools, starts, taken, wanted, strict=True):
            sequence.block_tables.append([0] * start + blocks + pool.allocate(count - len(block_hashes)))
        sequence.num_window_evicted = starts
        sequence.num_computed = computed
        self._pin(sequence, len(block_hashes))
        return True

    def extend(self, sequence: Sequence, *, ahead: int = 0) -> bool:
        """Gives a running sequence the blocks that its next step needs; returns False, and gives none, if they lack.

        ``ahead``: tokens that the step computes beyond those that are known.
        """
        wanted = self._wanted(sequence, sequence.num_computed, ahead=ahead)
        missing = [max(count - len(table), 0) for count, table in zip(wanted, sequence.block_tables, strict=True)]
        if any(missing):  # in most steps there is room for one more token
            for pool, count in zip(self.pools, missing, strict=True):
                if count > pool.num_free:
                    return False
            for pool, table, count in zip(self.pools, sequence.block_tables, missing, strict=True):
                table += pool.allocate(count)
        return True

    def trim(self, sequence: Sequence) -> None:
        """Takes from a running sequence the blocks that it needs no more, because tokens ahead did not come."""
        wanted = self._wanted(sequence, sequence.num_computed)
        for pool, table, count in zip(self.pools, sequence.block_tables, wanted, strict=True):
            pool.release(table[count:])
            del table[count:]

    def commit(self, sequence: Sequence) -> None:
        """After a step of a sequence: makes full blocks findable, gives back those that no token to come can see."""
        if self.reuse:
            self._register(sequence)
        if self._slides:
            starts = self._first_blocks(sequence.num_computed)
            if self._connector is not None:  # of what windows pass, the prompt's may be wanted again
                prompt = len(self._pinned(sequence))
                self._save(sequence, sequence.num_window_evicted, [min(start, prompt) for start in starts])
            for pool, table, passed, start in zip(
                self.pools, sequence.block_tables, sequence.num_window_evicted, starts, strict=True
            ):
                if start > passed:
                    pool.release(table[passed:start])
            sequence.num_window_evicted = starts

    def rewind(self, sequence: Sequence) -> None:
        """Lets a running sequence, of which nothing was shared, be computed again; it needs what was passed."""
        sequence.num_computed = 0
        for pool, table, passed in zip(self.pools, sequence.block_tables, sequence.num_window_evicted, strict=True):
            if passed:
                pool.release(table[passed:])
                table.clear()
        sequence.num_window_evicted = [0] * len(self.pools)

    def release(self, sequence: Sequence, *, retain: bool) -> None:
        """Takes all blocks of a sequence; ``keep`` leaves the full ones for reuse."""
        block_hashes = tuple(sequence.block_hashes(sequence.num_registered, self._block_size))
        pinned = self._pinned(sequence)
        if retain:
            self._save(sequence, sequence.num_window_evicted, [len(block_hashes)] * len(sequence.block_tables))
        for pool, table, passed in zip(self.pools, sequence.block_tables, sequence.num_window_evicted, strict=True):
            if retain:
                pool.retain(block_hashes)
            pool.unpin(pinned)
            pool.release(table[passed:])
        sequence.block_tables, sequence.num_window_evicted, sequence.num_registered = [], [], 0

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises AssertionError unless the pools agree with the sequences that hold their blocks."""
        running = list(running)
        pinned = Counter(block_hash for sequence in running for block_hash in self._pinned(sequence))
        for group, pool in enumerate(self.pools):
            in_use = Counter(block for s in running for block in s.block_tables[group][s.num_window_evicted[group] :])
            pool.check_integrity(in_use=in_use, pinned=pinned)

    def _first_blocks(self, position: int) -> list[int]:
        """In each group, the first block that is needed from ``position`` on."""
        return [first_block(position, window=window, block_size=self._block_size) for window in self._windows]

    def _wanted(self, sequence: Sequence, num_computed: int, *, ahead: int = 0) -> list[int]:
        """In each group, the blocks that a table should have: for all known tokens, or for those of one step."""
        known, size = len(sequence.tokens) + ahead, self._block_size
        soon = min(known, num_computed + self._step)
        return [-(-(soon if window else known) // size) for window in self._windows]

    def _max_blocks(self, sequence: Sequence, group: int) -> int:
        """The most blocks that a sequence holds until all tokens that it knows are computed."""
        window, step, size = self._windows[group], self._step, self._block_size
        return max_blocks_per_seq(len(sequence.tokens), window=window, step=step, block_size=size)

    def _missing_blocks(self, sequence: Sequence, group: int) -> int:
        """Blocks that a running sequence may still take until then."""
        return self._max_blocks(sequence, group) - (
            len(sequence.block_tables[group]) - sequence.num_window_evicted[group]
        )

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Digests of the leading blocks that need not be computed: each group has all that is seen from behind them."""
        if not (self.reuse and sequence.reuse):
            return []
        # The last known token is always computed: its logits are what the step is for.
        count = (len(sequence.tokens) - 1) // self._block_size
        block_hashes = sequence.block_hashes(count, self._block_size)
        while True:
            starts = self._first_blocks(count * self._block_size)
            # A block that is missing here would be missing from every hit that ends behind it.
            found = min(start + self._found(group, block_hashes[start:count]) for group, start in enumerate(starts))
            if found == count:
                return block_hashes[:count]
            count = found

    def _found(self, group: int, block_hashes: list[bytes]) -> int:
        """How many of them, from the first, the group's pool or the connector has."""
        pool, connector = self.pools[group], self._connector
        count = len(pool.match(block_hashes))
        if connector is not None:
            while count < len(block_hashes) and (
                pool.has(block_hashes[count]) or connector.has(block_hashes[count], group)
            ):
                count += 1
        return count

    def _has_room(self, sequence: Sequence, shared: list[list[bytes]], beside: Collection[Sequence]) -> bool:
        """Each group has room for a sequence that starts behind ``shared`` blocks, and for all beside it to grow."""
        for group, (pool, block_hashes) in enumerate(zip(self.pools, shared, strict=True)):
            there = [block_hash for block_hash in block_hashes if pool.has(block_hash)]
            growth = sum(max(self._missing_blocks(other, group), 1) for other in beside)
            if self._max_blocks(sequence, group) - len(there) + growth > pool.num_free_beside(pool.blocks_of(there)):
                return False
        return True

    def _take(self, group: int, block_hashes: list[bytes]) -> list[int]:
        """Acquires the group's blocks with these hashes, loaded by the connector if need be; fewer if that fails."""
        pool, connector = self.pools[group], self._connector
        there = {block_hash: pool.blocks_of([block_hash])[0] for block_hash in block_hashes if pool.has(block_hash)}
        pool.acquire(list(there.values()))  # before making room for others costs them their place
        blocks: list[int] = []
        for place, block_hash in enumerate(block_hashes):
            if block_hash in there:
                blocks.append(there[block_hash])
                continue
            [block] = pool.allocate(1)
            if connector is None or not connector.load(block_hash, group, block):
                pool.release([block, *(there[later] for later in block_hashes[place:] if later in there)])
                break
            pool.register(block, block_hash)
            blocks.append(block)
        return blocks

    def _save(self, sequence: Sequence, starts: list[int], stops: list[int]) -> None:
        """Puts findable blocks of a sequence, from ``starts`` to ``stops`` in each group, on the connector."""
        if self._connector is None or not self.reuse:
            return
        block_hashes = sequence.block_hashes(max(stops), self._block_size)
        for group, (table, start, stop) in enumerate(zip(sequence.block_tables, starts, stops, strict=True)):
            for index in range(start, stop):
                self._connector.save(block_hashes[index], group, table[index])

    def _is_coming(self, sequence: Sequence, count: int, running: Iterable[Sequence]) -> bool:
        """One of ``running`` computes the block that would follow the ``count`` ones which ``sequence`` can share."""
        size = self._block_size
        if not (self.reuse and sequence.reuse) or count >= (len(sequence.tokens) - 1) // size:
            return False
        wanted = sequence.block_hashes(count + 1, size)[count]
        return any(
            other.num_registered <= count < len(other.tokens) // size
            and other.block_hashes(count + 1, size)[count] == wanted
            for other in running
        )

    def _register(self, sequence: Sequence) -> None:
        count = sequence.num_computed // self._block_size
        known = sequence.num_registered
        if count == known:
            return
        block_hashes = sequence.block_hashes(count, self._block_size)
        for pool, table in zip(self.pools, sequence.block_tables, strict=True):
            for index in range(known, count):
                pool.register(table[index], block_hashes[index])
        self._pin(sequence, count)

    def _pin(self, sequence: Sequence, count: int) -> None:
        """Takes note that the first ``count`` blocks are findable, of which those of the prompt are to stay so."""
        before = len(self._pinned(sequence))
        sequence.num_registered = count
        for pool in self.pools:
            pool.pin(self._pinned(sequence)[before:])

    def _pinned(self, sequence: Sequence) -> list[bytes]:
        count = min(sequence.num_registered, sequence.num_prompt // self._block_size)
        return sequence.block_hashes(count, self._block_size)
