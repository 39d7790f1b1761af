"""Arrays of 4-byte items in memory that a backend allocated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal


@dataclass(frozen=True)
class Span:
    """A piece of a mapping."""

    address: int
    bytes: memoryview


@dataclass(frozen=True)
class Buffer:
    """A float32 or int32 array in a span, without gaps between its items."""

    span: Span
    shape: tuple[int, ...]
    format: Literal["f", "i"] = "f"

    @property
    def address(self) -> int:
        """The address of the first item."""
        return self.span.address

    @cached_property
    def values(self) -> Any:
        """The flat array as a memoryview of float or int, to be read and written."""
        return self.span.bytes.cast(self.format)

    def rows(self, start: int, stop: int) -> Buffer:
        """A view of the rows ``start`` to ``stop``, which shares the memory.

        Raises IndexError if the buffer does not have them.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"rows {start} to {stop} of a buffer of {self.shape[0]}")
        size = 4 * prod(self.shape[1:])
        span = Span(self.span.address + start * size, self.span.bytes[start * size : stop * size])
        return Buffer(span, (stop - start, *self.shape[1:]), self.format)
