"""Reference decoding of the K types, which have super-blocks of 256 weights, in torch.

A decoder takes blocks as uint8 of shape (blocks, block_bytes) and returns float32 of shape (blocks, 256). It is slow
and exact: its results equal those of the `gguf` package bit for bit. It knows no matrix and no file. The layouts are
those of ggml's `ggml-common.h`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mistralrs.quant.legacy import bit_fields, half


def decode_q2_k(blocks: Tensor) -> Tensor:
    """84 bytes: 16 nibbles of scale and min, 64 bytes of 2-bit weights, d, dmin; d * scale * q - dmin * min, per 16."""
    scales, weights, d, dmin = blocks.split_with_sizes((16, 64, 2, 2), dim=1)
    scale = half(d) * (scales & 15).float()  # (blocks, 16)
    minimum = half(dmin) * (scales >> 4).float()
    q = bit_fields(weights, width=2, span=32).reshape(-1, 16, 16).float()
    return (scale[:, :, None] * q - minimum[:, :, None]).flatten(1)


def decode_q3_k(blocks: Tensor) -> Tensor:
    """110 bytes: 32 bytes of third bits, 64 of 2-bit weights, 12 of 6-bit scales, d; d * (scale - 32) * q, per 16.

    A third bit that is not set takes 4 off the weight, so q runs from -4 to 3.
    """
    third, weights, scales, d = blocks.split_with_sizes((32, 64, 12, 2), dim=1)
    low = bit_fields(scales[:, :8], width=4, span=8).flatten(1)  # (blocks, 16)
    high = bit_fields(scales[:, 8:], width=2, span=4).flatten(1)
    scale = half(d) * ((low | (high << 4)).float() - 32.0)
    q = bit_fields(weights, width=2, span=32).flatten(1).float()  # (blocks, 256)
    q += bit_fields(third, width=1, span=32).flatten(1).float() * 4.0 - 4.0
    return (scale[:, :, None] * q.reshape(-1, 16, 16)).flatten(1)


def decode_q4_k(blocks: Tensor) -> Tensor:
    """144 bytes: d, dmin, 12 of 6-bit scales and mins, 128 of nibbles; d * scale * q - dmin * min, per 32."""
    scale, minimum = _scales_and_mins(blocks[:, :16])
    q = bit_fields(blocks[:, 16:], width=4, span=32).reshape(-1, 8, 32).float()
    return (scale * q - minimum).flatten(1)


def decode_q5_k(blocks: Tensor) -> Tensor:
    """176 bytes: as Q4_K with 32 bytes of fifth bits before the nibbles."""
    scale, minimum = _scales_and_mins(blocks[:, :16])
    low = bit_fields(blocks[:, 48:], width=4, span=32).reshape(-1, 8, 32)
    high = bit_fields(blocks[:, 16:48], width=1, span=32).reshape(-1, 8, 32)
    return (scale * (low | (high << 4)).float() - minimum).flatten(1)


def decode_q6_k(blocks: Tensor) -> Tensor:
    """210 bytes: 128 of low nibbles, 64 of upper bit pairs, 16 signed scales, d; d * scale * (q - 32), per 16."""
    low, high, scales, d = blocks.split_with_sizes((128, 64, 16, 2), dim=1)
    scale = half(d) * scales.view(torch.int8).float()  # (blocks, 16)
    q = bit_fields(low, width=4, span=64).flatten(1) | (bit_fields(high, width=2, span=32).flatten(1) << 4)
    return (scale[:, :, None] * (q.float() - 32.0).reshape(-1, 16, 16)).flatten(1)


def _scales_and_mins(header: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and minima of a Q4_K or Q5_K block, times d and dmin: (blocks, 16) uint8 -> 2 x (blocks, 8, 1).

    Sub-blocks 0 to 3 have six bits in bytes 0-3 (scales) and 4-7 (minima). Those of sub-blocks 4 to 7 are a nibble in
    bytes 8-11 and, above it, the two bits that the first eight bytes have left.
    """
    first, second, nibble = header[:, 4:].split_with_sizes((4, 4, 4), dim=1)
    scales = torch.cat((first & 63, (nibble & 15) | ((first >> 6) << 4)), dim=1)
    minima = torch.cat((second & 63, (nibble >> 4) | ((second >> 6) << 4)), dim=1)
    scale = half(header[:, :2]) * scales.float()
    minimum = half(header[:, 2:4]) * minima.float()
    return scale[:, :, None], minimum[:, :, None]
