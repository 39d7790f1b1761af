"""The arena's requests to the operating system, which once failed unnoticed for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistralrs.ops.arena import HUGE_PAGE, Arena
from mistralrs.ops.backend import KvShape
from mistralrs.ops.native_memory import PackedKv

with_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no transparent huge pages"
)


def flags(address: int) -> set[str]:
    """Returns the flags of the mapping that holds an address, as the kernel abbreviates them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError("no mapping holds the address")


@with_huge_pages
@pytest.mark.parametrize("huge_pages", [False, True])
def test_memory_is_private_and_huge_pages_are_asked_for_where_wanted(huge_pages: bool) -> None:
    span = Arena(4 * HUGE_PAGE, huge_pages=huge_pages).take(4 * HUGE_PAGE)
    found = flags(span.address)
    assert "sh" not in found  # shared
    assert ("hg" in found) == huge_pages


@with_huge_pages
@pytest.mark.parametrize("after", [0, HUGE_PAGE, 5000])
def test_a_part_of_a_span_alone_can_be_huge_pages(after: int) -> None:
    arena = Arena(12 * HUGE_PAGE)
    before = arena.take(4 * HUGE_PAGE)
    span = arena.take(4 * HUGE_PAGE, huge_pages_after=after)
    behind = arena.take(4 * HUGE_PAGE)
    end = span.address + len(span.bytes)
    assert "hg" not in flags(before.address) | flags(span.address - 1) | flags(end) | flags(behind.address)
    assert ("hg" in flags(span.address)) == (after == 0)
    assert "hg" in flags(span.address + after + 4096) & flags(end - 1)


@with_huge_pages
@pytest.mark.native
def test_a_layer_of_the_cache_has_huge_pages_behind_what_a_short_text_takes() -> None:
    block = PackedKv(KvShape(blocks=(1,), kv_heads=8, head_dim=128, block_size=16, dtype="bf16")).block_bytes
    blocks = 3 * HUGE_PAGE // block
    cache = PackedKv(KvShape(blocks=(blocks, 1, blocks), kv_heads=8, head_dim=128, block_size=16, dtype="bf16"))
    for layer in (cache.layers[0], cache.layers[2]):
        assert "hg" not in flags(layer.address + HUGE_PAGE // 2)
        assert "hg" in flags(layer.address + 2 * HUGE_PAGE)
    assert "hg" not in flags(cache.layers[1].address)  # shorter than what is left out


def test_what_lies_at_the_same_place_of_two_arenas_uses_different_sets_of_a_cache() -> None:
    first, second = (Arena(1000, huge_pages=True).take(1000).address for _ in range(2))
    page, set_of_lines = 4096, 512
    assert abs(second - first) % page >= set_of_lines


def test_memory_is_zeroed_and_aligned() -> None:
    arena = Arena(1000)
    first, second = arena.take(10), arena.take(20)
    assert (first.address % 64, second.address - first.address) == (0, 64)
    assert bytes(second.bytes) == bytes(20)
    with pytest.raises(MemoryError):
        arena.take(4 * HUGE_PAGE)
