"""Blocks of several groups: the longest prefix hit, and the number of blocks that each group needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.engine.config import EngineConfig, SamplingParams
from mistralrs.engine.kv.kv_cache_manager import KvCacheManager
from mistralrs.engine.sequence import Sequence
from mistralrs.ops.kv_groups import KvGroup, first_block, max_blocks_per_seq

BLOCKS = 12


def with_cached(windows: list[int], cached: list[set[int]], *, block_size: int) -> tuple[KvCacheManager, Sequence]:
    """Groups that have these blocks of a sequence, and the sequence, one token longer than ``BLOCKS`` blocks."""
    groups = tuple(KvGroup(2 * BLOCKS, window) for window in windows)
    blocks = KvCacheManager(EngineConfig(kv_groups=groups, max_model_len=99, max_batch_tokens=4, block_size=block_size))
    sequence = Sequence(0, list(range(BLOCKS * block_size + 1)), SamplingParams(), 99)
    block_hashes = sequence.block_hashes(BLOCKS, block_size)
    for pool, indices in zip(blocks.pools, cached, strict=True):
        for index in indices:
            [block] = pool.allocate(1)
            pool.register(block, block_hashes[index])
            pool.retain((block_hashes[index],))
            pool.release([block])
    return blocks, sequence


def is_hit(count: int, windows: list[int], cached: list[set[int]], *, block_size: int) -> bool:
    """Returns whether every position that the next token attends to is in a cached block."""
    return all(
        position // block_size in indices
        for window, indices in zip(windows, cached, strict=True)
        for position in range(count * block_size)
        if window == 0 or count * block_size - position < window
    )


@given(
    windows=st.lists(st.sampled_from([0, 0, 1, 2, 3, 5, 8, 13]), min_size=1, max_size=3),
    block_size=st.integers(1, 4),
    data=st.data(),
)
def test_a_hit_is_the_longest_that_there_is(windows: list[int], block_size: int, data: st.DataObject) -> None:
    indices = st.sets(st.integers(0, BLOCKS - 1)).map(lambda missing: set(range(BLOCKS)) - missing)
    cached = [data.draw(indices) for _ in windows]
    blocks, sequence = with_cached(windows, cached, block_size=block_size)
    assert blocks.admit(sequence, beside=[])
    blocks.check_integrity([sequence])
    hits = [count for count in range(BLOCKS + 1) if is_hit(count, windows, cached, block_size=block_size)]
    assert sequence.num_computed == max(hits) * block_size
    blocks.release(sequence, retain=False)
    blocks.check_integrity([])


@pytest.mark.parametrize("window", [0, 1, 2, 5, 16, 17, 40])
@pytest.mark.parametrize("step", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_one_sequence_needs_so_many_blocks_and_no_more(window: int, step: int, block_size: int) -> None:
    length = 200
    held = [
        -(-min(length, start + step) // block_size) - first_block(start, window=window, block_size=block_size)
        for start in range(length)
    ]
    assert max(held) == max_blocks_per_seq(length, window=window, step=step, block_size=block_size)
    enough = KvGroup(max(held), window)
    assert enough.max_context(length, step=step, block_size=block_size) == length
    less = KvGroup(max(held) - 1, window)
    assert less.max_context(length, step=step, block_size=block_size) == (max(held) - 1) * block_size


def test_a_sequence_that_does_not_fit_one_group_takes_from_none() -> None:
    groups = (KvGroup(20), KvGroup(3, 8))
    blocks = KvCacheManager(EngineConfig(kv_groups=groups, max_model_len=80, max_batch_tokens=8, block_size=4))
    first, second = (Sequence(number, [number] * 12, SamplingParams(), 80) for number in range(2))
    assert blocks.admit(first, beside=[])
    assert not blocks.admit(second, beside=[first])
    assert [pool.num_free for pool in blocks.pools] == [17, 1]
    first.num_computed = 8
    blocks.commit(first)  # its window has left no block behind yet
    first.tokens += [0] * 8
    assert not blocks.extend(first)
    assert [pool.num_free for pool in blocks.pools] == [17, 1]
    assert (blocks.num_blocks, blocks.num_free, blocks.num_cached) == (23, 18, 4)
    blocks.check_integrity([first])


def test_a_sequence_that_starts_leaves_room_for_windows_to_fill() -> None:
    """The first sequence has the blocks that its first step fills, and needs more before it frees any."""
    blocks = KvCacheManager(
        EngineConfig(kv_groups=(KvGroup(7, 8),), max_model_len=80, max_batch_tokens=4, block_size=4)
    )
    first, second = (Sequence(number, [number] * 40, SamplingParams(), 80) for number in range(2))
    assert blocks.admit(first, beside=[])
    assert blocks.num_free == 6
    assert not blocks.admit(second, beside=[first])  # both may come to need four
    short = Sequence(2, [2] * 12, SamplingParams(), 80)
    assert blocks.admit(short, beside=[first])
    blocks.check_integrity([first, short])
