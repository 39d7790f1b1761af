"""Arrays of 4-byte items in memory that a backend allocated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Span:
    """A piece of a mapping."""

    address: int
    bytes: memoryview


@dataclass(frozen=True)
class Buffer:
    """A float32 or int32 array in a span."""

    span: Span
    shape: tuple[int, ...]
    format: Literal["f", "i"] = "f"

    @property
    def address(self) -> int:
        """The address of the first item."""
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
