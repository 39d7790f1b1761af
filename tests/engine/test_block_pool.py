"""The states of blocks, the order of allocation, and reuse by content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from mistralrs.engine.kv.block_pool import BlockPool, hash_block, hash_root


def chain(*blocks: tuple[int, ...], cache_salt: str = "") -> list[bytes]:
    block_hashes = [hash_root(cache_salt)]
    for tokens in blocks:
        block_hashes.append(hash_block(block_hashes[-1], tokens))
    return block_hashes[1:]


def check(pool: BlockPool, *, held: Sequence[int] = (), pinned: Sequence[bytes] = ()) -> None:
    pool.check_integrity(in_use=Counter(held), pinned=Counter(pinned))


def finished(pool: BlockPool, block_hashes: list[bytes]) -> list[int]:
    """Runs a sequence with these full blocks to its end."""
    hits = pool.match(block_hashes)
    pool.acquire(hits)
    blocks = hits + pool.allocate(len(block_hashes) - len(hits))
    for block, block_hash in zip(blocks, block_hashes, strict=True):
        pool.register(block, block_hash)
    pool.retain(tuple(block_hashes))
    pool.release(blocks)
    return blocks


def test_block_hash_depends_on_tokens_parent_and_cache_salt() -> None:
    block_hashes = {
        chain((1, 2), (3, 4))[1],
        chain((1, 2), (3, 5))[1],
        chain((1, 3), (3, 4))[1],
        chain((3, 4))[0],
        chain((3, 4), cache_salt="adapter")[0],
        chain((3 + 2**32, 4))[0],
    }
    assert len(block_hashes) == 6
    assert all(len(block_hash) == 16 for block_hash in block_hashes)


def test_finished_blocks_are_found_again_as_far_as_they_agree() -> None:
    pool = BlockPool(8, max_retained=2)
    blocks = finished(pool, chain((1, 2), (3, 4), (5, 6)))
    assert pool.match(chain((1, 2), (3, 4), (9, 9))) == blocks[:2]
    assert pool.match(chain((7, 8), (3, 4))) == []
    assert pool.match(chain((1, 2), cache_salt="adapter")) == []
    assert pool.num_free == 8
    check(pool)


def test_empty_blocks_are_allocated_before_never_used_before_cached_ones() -> None:
    pool = BlockPool(5, max_retained=2)
    cached = finished(pool, chain((1,)))
    empty = pool.allocate(2)
    pool.release(empty)
    assert set(pool.allocate(2)) == set(empty)
    never_used = pool.allocate(2)
    assert not set(never_used) & set(cached + empty)
    assert pool.num_cached == 1
    assert pool.allocate(1) == cached
    assert pool.num_cached == 0
    check(pool, held=range(5))
    with pytest.raises(ValueError, match="0 are free"):
        pool.allocate(1)


def test_the_end_of_the_least_recently_used_sequence_is_evicted_first() -> None:
    pool = BlockPool(4, max_retained=4)
    old = finished(pool, chain((1,), (2,)))
    young = finished(pool, chain((3,), (4,)))
    finished(pool, chain((1,), (2,)))  # used again: now the others are older
    assert pool.allocate(1) == young[1:]
    assert pool.allocate(1) == young[:1]
    assert pool.match(chain((1,), (2,))) == old
    assert pool.allocate(1) == old[1:]
    check(pool, held=[*young, old[1]])


def test_only_the_last_sequences_are_retained() -> None:
    pool = BlockPool(8, max_retained=2)
    finished(pool, chain((1,), (2,)))
    finished(pool, chain((1,), (3,)))
    assert pool.num_cached == 3
    finished(pool, chain((4,)))
    assert len(pool.match(chain((1,), (2,)))) == 1  # the younger retained sequence has the first block too
    assert len(pool.match(chain((1,), (3,)))) == 2
    finished(pool, chain((5,)))
    assert pool.match(chain((1,))) == []


def test_a_forgotten_block_stays_while_a_running_sequence_has_it() -> None:
    pool = BlockPool(8, max_retained=1)
    (block,) = finished(pool, chain((1,)))
    pool.acquire([block])
    finished(pool, chain((2,)))
    assert pool.match(chain((1,))) == [block]
    check(pool, held=[block])
    pool.release([block])
    check(pool)
    assert pool.match(chain((1,))) == []


def test_reuse_can_be_off() -> None:
    pool = BlockPool(4, max_retained=0)
    assert not pool.reuse
    finished(pool, chain((1,)))
    assert pool.num_cached == 0
    assert pool.num_free == 4


def test_same_content_twice_is_registered_once() -> None:
    pool = BlockPool(4, max_retained=2)
    first, second = pool.allocate(2)
    (block_hash,) = chain((1,))
    pool.register(first, block_hash)
    pool.register(second, block_hash)
    assert pool.match([block_hash]) == [first]
    pool.release([second])
    pool.retain((block_hash,))
    pool.release([first])
    check(pool)
    assert pool.match([block_hash]) == [first]


def test_integrity_check_notices_a_double_release() -> None:
    pool = BlockPool(4, max_retained=0)
    blocks = pool.allocate(1)
    pool.release(blocks)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        check(pool)


def test_blocks_that_a_running_sequence_pins_outlive_their_references() -> None:
    pool = BlockPool(4, max_retained=1)
    first, second = pool.allocate(2)
    block_hashes = chain((1,), (2,))
    pool.register(first, block_hashes[0])
    pool.register(second, block_hashes[1])
    pool.pin(block_hashes[:1])
    pool.release([first, second])
    assert pool.match(block_hashes) == [first]
    assert pool.num_free == 4
    check(pool, pinned=block_hashes[:1])
    pool.pin(block_hashes[:1])
    pool.unpin(block_hashes[:1])
    assert pool.match(block_hashes) == [first]
    pool.unpin(block_hashes[:1])
    assert pool.match(block_hashes) == []
    check(pool)


def test_pinned_blocks_are_evicted_when_no_others_are_left() -> None:
    pool = BlockPool(1, max_retained=1)
    (block,) = pool.allocate(1)
    block_hashes = chain((1,))
    pool.register(block, block_hashes[0])
    pool.pin(block_hashes)
    pool.release([block])
    assert pool.allocate(1) == [block]
    assert pool.match(block_hashes) == []
    check(pool, held=[block], pinned=block_hashes)
    pool.unpin(block_hashes)
    check(pool, held=[block])


def test_blocks_without_pins_stay_until_their_memory_is_needed() -> None:
    pool = BlockPool(6, max_retained=1, max_evictable=2)
    first = finished(pool, chain((1,), (2,), (3,)))
    second = finished(
        pool,
        chain(
            (4,),
        ),
    )
    check(pool)
    assert pool.match(chain((1,), (2,), (3,))) == first[:2]  # the third, useless without them, was evicted
    assert pool.num_free == 6
    pool.acquire(first[:1])
    check(pool, held=first[:1])
    pool.release(first[:1])
    assert set(pool.allocate(3)) == {first[2], 4, 5}  # an empty one, and those never used
    assert pool.allocate(1) == first[1:2]  # evictable before the other one
    assert (
        pool.match(
            chain(
                (4,),
            )
        )
        == second
    )  # the retained one is still there
    assert pool.allocate(1) == first[:1]
    assert pool.allocate(1) == second


def test_evictable_blocks_can_be_pinned_again() -> None:
    pool = BlockPool(6, max_retained=1, max_evictable=2)
    block_hashes = chain((1,), (2,))
    finished(pool, block_hashes)
    finished(
        pool,
        chain(
            (3,),
        ),
    )
    pool.pin(block_hashes)
    check(pool, pinned=block_hashes)
    pool.unpin(block_hashes)
    check(pool)
