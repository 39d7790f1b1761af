"""The arena's requests to the operating system, which once failed unnoticed for long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mistralrs.ops.arena import HUGE_PAGE, Arena


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("huge_pages", [False, True])
def test_memory_is_private_and_huge_pages_are_asked_for_where_wanted(huge_pages: bool) -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("this kernel has no transparent huge pages")
    span = Arena(4 * HUGE_PAGE, huge_pages=huge_pages).take(4 * HUGE_PAGE)
    found = flags(span.address)
    assert "sh" not in found  # shared
    assert ("hg" in found) == huge_pages


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
