"""Where blocks are, who gets them next and what is found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from mistralrs.engine.block_pool import BlockPool, chain_digest, root_digest


def chain(*blocks: tuple[int, ...], identity: str = "") -> list[bytes]:
    digests = [root_digest(identity)]
    for tokens in blocks:
        digests.append(chain_digest(digests[-1], tokens))
    return digests[1:]


def check(pool: BlockPool, *, held: Sequence[int] = (), vouched: Sequence[bytes] = ()) -> None:
    pool.check_integrity(held=Counter(held), vouched=Counter(vouched))


def finished(pool: BlockPool, digests: list[bytes]) -> list[int]:
    """Lets a sequence with these full blocks come and go."""
    hits = pool.match(digests)
    pool.hold(hits)
    blocks = hits + pool.allocate(len(digests) - len(hits))
    for block, digest in zip(blocks, digests, strict=True):
        pool.register(block, digest)
    pool.keep(tuple(digests))
    pool.release(blocks)
    return blocks


def test_digest_depends_on_tokens_parent_and_identity() -> None:
    digests = {
        chain((1, 2), (3, 4))[1],
        chain((1, 2), (3, 5))[1],
        chain((1, 3), (3, 4))[1],
        chain((3, 4))[0],
        chain((3, 4), identity="adapter")[0],
        chain((3 + 2**32, 4))[0],
    }
    assert len(digests) == 6
    assert all(len(digest) == 16 for digest in digests)


def test_finished_blocks_are_found_again_as_far_as_they_agree() -> None:
    pool = BlockPool(8, keep_sequences=2)
    blocks = finished(pool, chain((1, 2), (3, 4), (5, 6)))
    assert pool.match(chain((1, 2), (3, 4), (9, 9))) == blocks[:2]
    assert pool.match(chain((7, 8), (3, 4))) == []
    assert pool.match(chain((1, 2), identity="adapter")) == []
    assert pool.num_free == 8
    check(pool)


def test_clean_blocks_go_before_untouched_before_cached_ones() -> None:
    pool = BlockPool(5, keep_sequences=2)
    cached = finished(pool, chain((1,)))
    clean = pool.allocate(2)
    pool.release(clean)
    assert set(pool.allocate(2)) == set(clean)
    untouched = pool.allocate(2)
    assert not set(untouched) & set(cached + clean)
    assert pool.num_cached == 1
    assert pool.allocate(1) == cached
    assert pool.num_cached == 0
    check(pool, held=range(5))
    with pytest.raises(ValueError, match="0 are free"):
        pool.allocate(1)


def test_the_least_recently_used_end_goes_first() -> None:
    pool = BlockPool(4, keep_sequences=4)
    old = finished(pool, chain((1,), (2,)))
    young = finished(pool, chain((3,), (4,)))
    finished(pool, chain((1,), (2,)))  # used again: now the others are older
    assert pool.allocate(1) == young[1:]
    assert pool.allocate(1) == young[:1]
    assert pool.match(chain((1,), (2,))) == old
    assert pool.allocate(1) == old[1:]
    check(pool, held=[*young, old[1]])


def test_only_the_last_sequences_are_kept() -> None:
    pool = BlockPool(8, keep_sequences=2)
    finished(pool, chain((1,), (2,)))
    finished(pool, chain((1,), (3,)))
    assert pool.num_cached == 3
    finished(pool, chain((4,)))
    assert len(pool.match(chain((1,), (2,)))) == 1  # the younger kept sequence has the first block too
    assert len(pool.match(chain((1,), (3,)))) == 2
    finished(pool, chain((5,)))
    assert pool.match(chain((1,))) == []


def test_a_forgotten_block_stays_while_a_running_sequence_has_it() -> None:
    pool = BlockPool(8, keep_sequences=1)
    (block,) = finished(pool, chain((1,)))
    pool.hold([block])
    finished(pool, chain((2,)))
    assert pool.match(chain((1,))) == [block]
    check(pool, held=[block])
    pool.release([block])
    check(pool)
    assert pool.match(chain((1,))) == []


def test_reuse_can_be_off() -> None:
    pool = BlockPool(4, keep_sequences=0)
    assert not pool.reuse
    finished(pool, chain((1,)))
    assert pool.num_cached == 0
    assert pool.num_free == 4


def test_same_content_twice_is_registered_once() -> None:
    pool = BlockPool(4, keep_sequences=2)
    first, second = pool.allocate(2)
    (digest,) = chain((1,))
    pool.register(first, digest)
    pool.register(second, digest)
    assert pool.match([digest]) == [first]
    pool.release([second])
    pool.keep((digest,))
    pool.release([first])
    check(pool)
    assert pool.match([digest]) == [first]


def test_integrity_check_notices_a_double_release() -> None:
    pool = BlockPool(4, keep_sequences=0)
    blocks = pool.allocate(1)
    pool.release(blocks)
    pool.release(blocks)
    with pytest.raises(AssertionError):
        check(pool)


def test_what_a_running_sequence_vouches_for_outlives_its_hold() -> None:
    pool = BlockPool(4, keep_sequences=1)
    first, second = pool.allocate(2)
    digests = chain((1,), (2,))
    pool.register(first, digests[0])
    pool.register(second, digests[1])
    pool.vouch(digests[:1])
    pool.release([first, second])
    assert pool.match(digests) == [first]
    assert pool.num_free == 4
    check(pool, vouched=digests[:1])
    pool.vouch(digests[:1])
    pool.disown(digests[:1])
    assert pool.match(digests) == [first]
    pool.disown(digests[:1])
    assert pool.match(digests) == []
    check(pool)


def test_what_is_vouched_for_may_be_taken_when_nothing_else_is_left() -> None:
    pool = BlockPool(1, keep_sequences=1)
    (block,) = pool.allocate(1)
    digests = chain((1,))
    pool.register(block, digests[0])
    pool.vouch(digests)
    pool.release([block])
    assert pool.allocate(1) == [block]
    assert pool.match(digests) == []
    check(pool, held=[block], vouched=digests)
    pool.disown(digests)
    check(pool, held=[block])


def test_what_nobody_vouches_for_stays_until_it_is_needed() -> None:
    pool = BlockPool(6, keep_sequences=1, spill_blocks=2)
    first = finished(pool, chain((1,), (2,), (3,)))
    second = finished(
        pool,
        chain(
            (4,),
        ),
    )
    check(pool)
    assert pool.match(chain((1,), (2,), (3,))) == first[:2]  # the third, worth nothing without them, had to go
    assert pool.num_free == 6
    pool.hold(first[:1])
    check(pool, held=first[:1])
    pool.release(first[:1])
    assert set(pool.allocate(3)) == {first[2], 4, 5}  # a clean one, and those that were never touched
    assert pool.allocate(1) == first[1:2]  # spilled before the other one
    assert (
        pool.match(
            chain(
                (4,),
            )
        )
        == second
    )  # the kept one is still there
    assert pool.allocate(1) == first[:1]
    assert pool.allocate(1) == second


def test_what_spilled_can_be_kept_again() -> None:
    pool = BlockPool(6, keep_sequences=1, spill_blocks=2)
    digests = chain((1,), (2,))
    finished(pool, digests)
    finished(
        pool,
        chain(
            (3,),
        ),
    )
    pool.vouch(digests)
    check(pool, vouched=digests)
    pool.disown(digests)
    check(pool)
