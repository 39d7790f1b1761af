"""Memory for weights, cache and buffers: private anonymous mappings, handed out as spans.

Decode is bound by memory, and 2 MiB pages are read faster than 4 KiB ones (docs/log.md). Pages are touched only when
they are written. A span keeps its mapping alive.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
from math import prod
from typing import Literal

from mistralrs.errors import LoadError
from mistralrs.ops.buffer import Buffer, Span

HUGE_PAGE = 2 << 20
ALIGNMENT = 64

_STARTS, _START_BYTES = 64, 8704
"""Arenas start at different multiples of this beyond a huge page: what lies at the same place of many of them, such as
the matrices of adapters, would else share a few sets of a cache and evict one another."""
_starts = itertools.count()


class Arena:
    """One mapping of ``capacity`` bytes; ``take`` hands out aligned pieces of it, in order."""

    def __init__(self, capacity: int, *, huge_pages: bool = False) -> None:
        """``huge_pages``: for memory that is large and will be filled; one that is touched in few places would take too
        much."""
        start = next(_starts) % _STARTS * _START_BYTES if huge_pages else 0
        size = capacity + start + HUGE_PAGE
        try:
            # private: Python's default is shared memory, which has huge pages on few systems
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise LoadError(
                f"cannot reserve {capacity / 2**20:.0f} MiB of memory: {error}",
                hint="use a smaller model, a shorter context or fewer sequences (--max-seqs)",
            ) from error
        if huge_pages:
            self._want_huge_pages(0, size)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._base = -(-base // HUGE_PAGE) * HUGE_PAGE + start
        self._bytes = memoryview(self._map)[self._base - base :]
        self._used = 0
        self.capacity = capacity

    @property
    def left(self) -> int:
        """Bytes that can still be taken in one piece."""
        return len(self._bytes) - (self._used + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT

    def take(self, nbytes: int, *, huge_pages_after: int | None = None) -> Span:
        """``nbytes`` zeroed bytes at an address that is a multiple of 64.

        ``huge_pages_after``: bytes of them behind which huge pages are wanted, in an arena without."""
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + nbytes > len(self._bytes):
            raise MemoryError(f"arena of {self.capacity} bytes is full")
        self._used = start + nbytes
        if huge_pages_after is not None:
            first = len(self._map) - len(self._bytes) + start
            page = -(-(first + huge_pages_after) // mmap.PAGESIZE) * mmap.PAGESIZE
            self._want_huge_pages(page, first + nbytes - page)
        return Span(self._base + start, self._bytes[start : start + nbytes])

    def _want_huge_pages(self, start: int, nbytes: int) -> None:
        if nbytes > 0 and hasattr(mmap, "MADV_HUGEPAGE"):
            # a kernel without transparent huge pages is slower, nothing else
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE, start, nbytes)


def buffer(arena: Arena, *shape: int, format: Literal["f", "i"] = "f") -> Buffer:
    """A zeroed array of 4-byte items."""
    return Buffer(arena.take(4 * prod(shape)), shape, format)


def buffers_bytes(*shapes: tuple[int, ...]) -> int:
    """Arena bytes that buffers of these shapes take, alignment included."""
    return sum(4 * prod(shape) + ALIGNMENT for shape in shapes)
