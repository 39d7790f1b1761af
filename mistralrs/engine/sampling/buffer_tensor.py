"""Logits and hidden states as tensors, for what the engine computes with torch."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from mistralrs.ops.buffer import Buffer

if TYPE_CHECKING:
    import torch


def float_rows(buffer: Buffer) -> torch.Tensor:
    """A view of the memory of a float32 buffer, of the buffer's shape."""
    import torch  # here, because the engine loads without it

    if not prod(buffer.shape):  # torch makes no view of nothing
        return torch.empty(buffer.shape)
    return torch.frombuffer(buffer.span.bytes, dtype=torch.float32, count=prod(buffer.shape)).view(buffer.shape)
