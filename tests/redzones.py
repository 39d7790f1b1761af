"""Memory that AddressSanitizer watches (`make sanitize`): each span of an arena becomes an allocation of its own, and a
kernel that reads or writes past the end of a buffer is stopped there.
"""

from __future__ import annotations

import ctypes
import weakref

from mistralrs.ops.arena import ALIGNMENT, Arena, Span

LARGEST = 16 << 20
"""Bytes; larger spans, such as a cache that is never filled, stay in the arena: an allocation of its own is touched."""


def watched() -> bool:
    """Returns whether this process runs under AddressSanitizer."""
    return hasattr(ctypes.CDLL(None), "__asan_region_is_poisoned")


def install() -> None:
    """Replaces ``Arena.take``; the arena still counts what is taken, and is full when it was before."""
    libc = ctypes.CDLL(None)
    libc.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    counted = Arena.take

    def take(self: Arena, nbytes: int, *, huge_pages_after: int | None = None) -> Span:
        inside = counted(self, nbytes, huge_pages_after=huge_pages_after)
        if nbytes > LARGEST:
            return inside
        address = ctypes.c_void_p()
        if libc.posix_memalign(ctypes.byref(address), ALIGNMENT, max(nbytes, 1)) or address.value is None:
            raise MemoryError(f"{nbytes} bytes")
        ctypes.memset(address, 0, nbytes)
        owner = (ctypes.c_char * nbytes).from_address(address.value)
        weakref.finalize(owner, libc.free, address.value)
        self.__dict__.setdefault("owners", []).append(owner)  # an arena keeps its spans alive
        return Span(address.value, memoryview(owner).cast("B"))

    Arena.take = take  # type: ignore[method-assign]
