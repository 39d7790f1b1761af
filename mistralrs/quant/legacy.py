"""Reference decoding of the plain types and of those with blocks of 32 weights, in torch.

A decoder takes blocks as uint8 of shape (blocks, block_bytes) and returns float32 of shape (blocks, block_len). It is
slow and exact: its results equal those of the `gguf` package bit for bit. It knows no matrix and no file. The layouts
are those of ggml's `ggml-common.h`.
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


def decode_q4_0(blocks: Tensor) -> Tensor:
    """18 bytes: d, 16 bytes of nibbles; d * (q - 8)."""
    return half(blocks[:, :2]) * (nibbles(blocks[:, 2:]) - 8.0)


def decode_q4_1(blocks: Tensor) -> Tensor:
    """20 bytes: d, m, 16 bytes of nibbles; d * q + m."""
    return half(blocks[:, :2]) * nibbles(blocks[:, 4:]) + half(blocks[:, 2:4])


def decode_q5_0(blocks: Tensor) -> Tensor:
    """22 bytes: d, 32 fifth bits, 16 bytes of nibbles; d * (q - 16)."""
    q = nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6])
    return half(blocks[:, :2]) * (q - 16.0)


def decode_q5_1(blocks: Tensor) -> Tensor:
    """24 bytes: d, m, 32 fifth bits, 16 bytes of nibbles; d * q + m."""
    q = nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])
    return half(blocks[:, :2]) * q + half(blocks[:, 2:4])


def decode_q8_0(blocks: Tensor) -> Tensor:
    """34 bytes: d, 32 signed bytes; d * q."""
    return half(blocks[:, :2]) * blocks[:, 2:].view(torch.int8).float()


def half(data: Tensor) -> Tensor:
    """Pairs of bytes as float16, widened: (blocks, 2 * n) uint8 -> (blocks, n) float32."""
    # The copy makes the bytes contiguous and aligned, which a view as a wider type asks for.
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


def _fifth_bits(data: Tensor) -> Tensor:
    """Bit i of the block as 0.0 or 16.0: (blocks, 4) uint8 -> (blocks, 32) float32."""
    return bit_fields(data, width=1, span=1).flatten(1).float() * 16.0
