"""The KV blocks of sequences in all groups: what is shared, what is taken, what is findable, what a window has passed.

Every group has a pool of its own, because its layers have arrays of their own; a block's digest is the same in all.
Knows positions and blocks; no plan, no tensor and no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Protocol

from mistralrs.engine.block_pool import BlockPool
from mistralrs.engine.config import EngineConfig
from mistralrs.engine.sequence import Sequence
from mistralrs.ops.kv_groups import blocks_of_one, first_block


class Shelf(Protocol):
    """Where blocks outlive the pools, found by their digest and their group."""

    def has(self, digest: bytes, group: int) -> bool: ...

    def load(self, digest: bytes, group: int, block: int) -> bool:
        """Fills a block; False if it turns out not to be there, which ``has`` then says too."""

    def save(self, digest: bytes, group: int, block: int) -> None:
        """Keeps a copy of a block, unless there is one."""


class KvBlocks:
    """Gives blocks to running sequences and takes them back.

    In a group without a window a sequence has blocks for all tokens that it knows. In one with a window it has those
    that tokens to come can see, and as many as one step can fill. What a window has passed is given back at once: of
    the prompt it stays findable as long as nobody needs the memory, because other prompts may begin alike; of the
    answer it is forgotten. When a sequence ends, the window at its end is kept with the rest, for the next turn.
    """

    def __init__(self, config: EngineConfig, shelf: Shelf | None = None) -> None:
        """``shelf``: where to put what is kept, and to look for what the pools do not have."""
        keep_sequences = 0 if config.no_kv_cache else config.prefix_cache_n
        spill_blocks = config.spill_blocks if keep_sequences else 0
        self.pools = [
            BlockPool(group.num_blocks, keep_sequences=keep_sequences, spill_blocks=spill_blocks)
            for group in config.kv_groups
        ]
        self.reuse = keep_sequences > 0
        self._shelf = shelf
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

    def start(self, sequence: Sequence, *, beside: Collection[Sequence]) -> bool:
        """Gives a sequence that has no blocks what it can share and needs; sets how much of it is computed.

        Returns False, with nothing changed, unless it and all that run ``beside`` it have room to grow; also while one
        of those computes what it could share next.
        """
        while True:
            digests = self._shareable(sequence)
            if self._is_coming(sequence, len(digests), beside):
                return False
            computed = len(digests) * self._block_size
            starts = self._first_blocks(computed)
            shared = [digests[start:] for start in starts]
            if not self._has_room(sequence, shared, beside):
                return False
            taken = [self._take(group, wanted) for group, wanted in enumerate(shared)]
            if all(len(blocks) == len(wanted) for blocks, wanted in zip(taken, shared, strict=True)):
                break
            for pool, blocks in zip(self.pools, taken, strict=True):  # the shelf did not have what it said
                pool.release(blocks)
        wanted = self._wanted(sequence, computed)
        for pool, start, blocks, count in zip(self.pools, starts, taken, wanted, strict=True):
            sequence.tables.append([0] * start + blocks + pool.allocate(count - len(digests)))
        sequence.num_passed = starts
        sequence.num_computed = computed
        self._vouch(sequence, len(digests))
        return True

    def extend(self, sequence: Sequence, *, ahead: int = 0) -> bool:
        """Gives a running sequence the blocks that its next step needs; returns False, and gives none, if they lack.

        ``ahead``: tokens that the step computes beyond those that are known.
        """
        wanted = self._wanted(sequence, sequence.num_computed, ahead=ahead)
        missing = [max(count - len(table), 0) for count, table in zip(wanted, sequence.tables, strict=True)]
        if any(missing):  # in most steps there is room for one more token
            for pool, count in zip(self.pools, missing, strict=True):
                if count > pool.num_free:
                    return False
            for pool, table, count in zip(self.pools, sequence.tables, missing, strict=True):
                table += pool.allocate(count)
        return True

    def trim(self, sequence: Sequence) -> None:
        """Takes from a running sequence the blocks that it needs no more, because tokens ahead did not come."""
        wanted = self._wanted(sequence, sequence.num_computed)
        for pool, table, count in zip(self.pools, sequence.tables, wanted, strict=True):
            pool.release(table[count:])
            del table[count:]

    def commit(self, sequence: Sequence) -> None:
        """After a step of a sequence: makes full blocks findable, gives back those that no token to come can see."""
        if self.reuse:
            self._register(sequence)
        if self._slides:
            starts = self._first_blocks(sequence.num_computed)
            if self._shelf is not None:  # of what windows pass, the prompt's may be wanted again
                prompt = len(self._vouched(sequence))
                self._save(sequence, sequence.num_passed, [min(start, prompt) for start in starts])
            for pool, table, passed, start in zip(
                self.pools, sequence.tables, sequence.num_passed, starts, strict=True
            ):
                if start > passed:
                    pool.release(table[passed:start])
            sequence.num_passed = starts

    def rewind(self, sequence: Sequence) -> None:
        """Lets a running sequence, of which nothing was shared, be computed again; it needs what was passed."""
        sequence.num_computed = 0
        for pool, table, passed in zip(self.pools, sequence.tables, sequence.num_passed, strict=True):
            if passed:
                pool.release(table[passed:])
                table.clear()
        sequence.num_passed = [0] * len(self.pools)

    def release(self, sequence: Sequence, *, keep: bool) -> None:
        """Takes all blocks of a sequence; ``keep`` leaves the full ones for reuse."""
        digests = tuple(sequence.digests(sequence.num_registered, self._block_size))
        vouched = self._vouched(sequence)
        if keep:
            self._save(sequence, sequence.num_passed, [len(digests)] * len(sequence.tables))
        for pool, table, passed in zip(self.pools, sequence.tables, sequence.num_passed, strict=True):
            if keep:
                pool.keep(digests)
            pool.disown(vouched)
            pool.release(table[passed:])
        sequence.tables, sequence.num_passed, sequence.num_registered = [], [], 0

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises AssertionError unless the pools agree with the sequences that hold their blocks."""
        running = list(running)
        vouched = Counter(digest for sequence in running for digest in self._vouched(sequence))
        for group, pool in enumerate(self.pools):
            held = Counter(block for s in running for block in s.tables[group][s.num_passed[group] :])
            pool.check_integrity(held=held, vouched=vouched)

    def _first_blocks(self, position: int) -> list[int]:
        """In each group, the first block that is needed from ``position`` on."""
        return [first_block(position, window=window, block_size=self._block_size) for window in self._windows]

    def _wanted(self, sequence: Sequence, num_computed: int, *, ahead: int = 0) -> list[int]:
        """In each group, the blocks that a table should have: for all known tokens, or for those of one step."""
        known, size = len(sequence.tokens) + ahead, self._block_size
        soon = min(known, num_computed + self._step)
        return [-(-(soon if window else known) // size) for window in self._windows]

    def _most(self, sequence: Sequence, group: int) -> int:
        """The most blocks that a sequence holds until all tokens that it knows are computed."""
        window, step, size = self._windows[group], self._step, self._block_size
        return blocks_of_one(len(sequence.tokens), window=window, step=step, block_size=size)

    def _lacks(self, sequence: Sequence, group: int) -> int:
        """Blocks that a running sequence may still take until then."""
        return self._most(sequence, group) - (len(sequence.tables[group]) - sequence.num_passed[group])

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Digests of the leading blocks that need not be computed: each group has all that is seen from behind them."""
        if not (self.reuse and sequence.reuse):
            return []
        # The last known token is always computed: its logits are what the step is for.
        count = (len(sequence.tokens) - 1) // self._block_size
        digests = sequence.digests(count, self._block_size)
        while True:
            starts = self._first_blocks(count * self._block_size)
            # A block that is missing here would be missing from every hit that ends behind it.
            found = min(start + self._found(group, digests[start:count]) for group, start in enumerate(starts))
            if found == count:
                return digests[:count]
            count = found

    def _found(self, group: int, digests: list[bytes]) -> int:
        """How many of them, from the first, the group's pool or the shelf has."""
        pool, shelf = self.pools[group], self._shelf
        count = len(pool.match(digests))
        if shelf is not None:
            while count < len(digests) and (pool.has(digests[count]) or shelf.has(digests[count], group)):
                count += 1
        return count

    def _has_room(self, sequence: Sequence, shared: list[list[bytes]], beside: Collection[Sequence]) -> bool:
        """Each group has room for a sequence that starts behind ``shared`` blocks, and for all beside it to grow."""
        for group, (pool, digests) in enumerate(zip(self.pools, shared, strict=True)):
            there = [digest for digest in digests if pool.has(digest)]
            growth = sum(max(self._lacks(other, group), 1) for other in beside)
            if self._most(sequence, group) - len(there) + growth > pool.num_free_beside(pool.blocks_of(there)):
                return False
        return True

    def _take(self, group: int, digests: list[bytes]) -> list[int]:
        """Holds the group's blocks with these contents, fetched from the shelf where need be; fewer if that fails."""
        pool, shelf = self.pools[group], self._shelf
        there = {digest: pool.blocks_of([digest])[0] for digest in digests if pool.has(digest)}
        pool.hold(list(there.values()))  # before making room for others costs them their place
        blocks: list[int] = []
        for place, digest in enumerate(digests):
            if digest in there:
                blocks.append(there[digest])
                continue
            [block] = pool.allocate(1)
            if shelf is None or not shelf.load(digest, group, block):
                pool.release([block, *(there[later] for later in digests[place:] if later in there)])
                break
            pool.register(block, digest)
            blocks.append(block)
        return blocks

    def _save(self, sequence: Sequence, starts: list[int], stops: list[int]) -> None:
        """Puts findable blocks of a sequence, from ``starts`` to ``stops`` in each group, on the shelf."""
        if self._shelf is None or not self.reuse:
            return
        digests = sequence.digests(max(stops), self._block_size)
        for group, (table, start, stop) in enumerate(zip(sequence.tables, starts, stops, strict=True)):
            for index in range(start, stop):
                self._shelf.save(digests[index], group, table[index])

    def _is_coming(self, sequence: Sequence, count: int, running: Iterable[Sequence]) -> bool:
        """One of ``running`` computes the block that would follow the ``count`` ones which ``sequence`` can share."""
        size = self._block_size
        if not (self.reuse and sequence.reuse) or count >= (len(sequence.tokens) - 1) // size:
            return False
        wanted = sequence.digests(count + 1, size)[count]
        return any(
            other.num_registered <= count < len(other.tokens) // size
            and other.digests(count + 1, size)[count] == wanted
            for other in running
        )

    def _register(self, sequence: Sequence) -> None:
        count = sequence.num_computed // self._block_size
        known = sequence.num_registered
        if count == known:
            return
        digests = sequence.digests(count, self._block_size)
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            for index in range(known, count):
                pool.register(table[index], digests[index])
        self._vouch(sequence, count)

    def _vouch(self, sequence: Sequence, count: int) -> None:
        """Takes note that the first ``count`` blocks are findable, of which those of the prompt are to stay so."""
        before = len(self._vouched(sequence))
        sequence.num_registered = count
        for pool in self.pools:
            pool.vouch(self._vouched(sequence)[before:])

    def _vouched(self, sequence: Sequence) -> list[bytes]:
        count = min(sequence.num_registered, sequence.num_prompt // self._block_size)
        return sequence.digests(count, self._block_size)
