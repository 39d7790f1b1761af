"""Buffers of tensors and tensors of buffers, for tests that compute with torch."""

from __future__ import annotations

import torch

from mistralrs.ops.buffer import Buffer, Span
from mistralrs.ops.reference_memory import tensor_of

__all__ = ["buffer_of", "tensor_of"]


def buffer_of(values: torch.Tensor) -> Buffer:
    """A buffer on the memory of float32 values, or on a copy if they have gaps."""
    array = values.contiguous().numpy()
    assert array.dtype == "float32"
    span = Span(array.ctypes.data, memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(bytearray()))
    return Buffer(span, tuple(values.shape))
