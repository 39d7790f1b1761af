"""Reference decoders, in torch, of the plain types, and the pieces that other decoders are made of.

A decoder takes blocks as uint8 of shape (blocks, block_bytes) and returns float32 of shape (blocks, block_len), exact.
The layouts are those of ggml's `ggml-common.h`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decode_f32(blocks: Tensor) -> Tensor:
    """4 bytes: the weight."""
    return blocks.clone().view(torch.float32)


def decode_f16(blocks: Tensor) -> Tensor:
    """2 bytes: the weight."""
    return half(blocks)


def decode_bf16(blocks: Tensor) -> Tensor:
    """2 bytes: the upper half of a float32."""
    return blocks.clone().view(torch.bfloat16).float()


def half(data: Tensor) -> Tensor:
    """Pairs of bytes as float16, widened: (blocks, 2 * n) uint8 -> (blocks, n) float32."""
    # The copy makes the bytes contiguous and aligned, as a view as a wider type requires.
    return data.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def bit_fields(data: Tensor, *, width: int, span: int) -> Tensor:
    """Takes groups of ``span`` bytes apart: the lowest ``width`` bits of all bytes of a group, then the next ones.

    (blocks, n) uint8 -> (blocks, n / span, 8 / width, span) uint8.
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8).view(1, 1, -1, 1)
    groups = data.reshape(data.shape[0], data.shape[1] // span, 1, span)
    return (groups >> shifts) & ((1 << width) - 1)


def nibbles(data: Tensor) -> Tensor:
    """All low nibbles, then all high ones, as float32: (blocks, n) uint8 -> (blocks, 2 * n)."""
    return bit_fields(data, width=4, span=data.shape[1]).flatten(1).float()
