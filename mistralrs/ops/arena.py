"""Memory for weights, cache and buffers: private anonymous mappings, handed out as spans.

Decode is bound by memory, and 2 MiB pages are read faster than 4 KiB ones (docs/log.md). Pages are touched only when
they are written. A span keeps its mapping alive; tensors are views of it. Knows nothing of what is stored.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from mistralrs.errors import LoadError

if TYPE_CHECKING:
    import torch

HUGE_PAGE = 2 << 20
ALIGNMENT = 64


@dataclass(frozen=True)
class Span:
    """A piece of a mapping."""

    address: int
    bytes: memoryview


class Arena:
    """One mapping of ``capacity`` bytes; ``take`` hands out aligned pieces of it, in order."""

    def __init__(self, capacity: int, *, huge_pages: bool = False) -> None:
        """``huge_pages``: for what is large and will be filled; what is touched here and there would take too much."""
        size = capacity + HUGE_PAGE
        try:
            # private: Python's default is shared memory, which has huge pages on few systems
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise LoadError(
                f"cannot reserve {capacity / 2**20:.0f} MiB of memory: {error}",
                hint="use a smaller model, a shorter context or fewer sequences (--max-seqs)",
            ) from error
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            # a kernel without transparent huge pages is slower, nothing else
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._base = -(-base // HUGE_PAGE) * HUGE_PAGE
        self._bytes = memoryview(self._map)[self._base - base :]
        self._used = 0
        self.capacity = capacity

    @property
    def left(self) -> int:
        """Bytes that can still be taken in one piece."""
        return len(self._bytes) - (self._used + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT

    def take(self, nbytes: int) -> Span:
        """``nbytes`` zeroed bytes at an address that is a multiple of 64."""
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + nbytes > len(self._bytes):
            raise MemoryError(f"arena of {self.capacity} bytes is full")
        self._used = start + nbytes
        return Span(self._base + start, self._bytes[start : start + nbytes])


@dataclass(frozen=True)
class Buffer:
    """A float32 or int32 array in a span."""

    span: Span
    shape: tuple[int, ...]
    format: Literal["f", "i"] = "f"

    @property
    def address(self) -> int:
        return self.span.address

    @cached_property
    def values(self) -> Any:
        """The flat array as a memoryview of float or int, to be read and written without torch."""
        return self.span.bytes.cast(self.format)

    @cached_property
    def tensor(self) -> torch.Tensor:
        """A view of the same memory."""
        import torch

        dtype = torch.float32 if self.format == "f" else torch.int32
        return torch.frombuffer(self.span.bytes, dtype=dtype, count=prod(self.shape)).view(self.shape)


def buffer(arena: Arena, *shape: int, format: Literal["f", "i"] = "f") -> Buffer:
    """A zeroed array of 4-byte items."""
    return Buffer(arena.take(4 * prod(shape)), shape, format)


def buffers_bytes(*shapes: tuple[int, ...]) -> int:
    """Arena bytes that buffers of these shapes take, alignment included."""
    return sum(4 * prod(shape) + ALIGNMENT for shape in shapes)
