"""Reference unpackers and decoders, in torch, of layouts that ggml changed in 2023 and that legacy GGML files have.

An unpacker is as in ``iquants``, a decoder as in ``dequantize``. Until ggjt version 1 the two nibbles of a byte are
neighbours; since version 2 a block has first all low nibbles and then all high ones (llama.cpp pull request 1405).
Until version 2 the scale and minimum of Q4_0, Q4_1 and Q8_0 are float32, since version 3 they are float16 (pull
request 1508). Q4_2 and Q4_3 were dropped with version 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mistralrs.quant.iquants import Unpacked
from mistralrs.quant.legacy import bit_fields, half, nibbles


def unpack_q4_0_v1(blocks: Tensor) -> Unpacked:
    """20 bytes: d as float32, 16 bytes of neighbouring nibbles; d * (q - 8)."""
    return _neighbours(blocks[:, 4:]).to(torch.int8) - 8, _single(blocks[:, :4]).repeat_interleave(2, dim=1)


def unpack_q4_0_v2(blocks: Tensor) -> Unpacked:
    """20 bytes: d as float32, 16 bytes of nibbles; d * (q - 8)."""
    return nibbles(blocks[:, 4:]).to(torch.int8) - 8, _single(blocks[:, :4]).repeat_interleave(2, dim=1)


def unpack_q4_2(blocks: Tensor) -> Unpacked:
    """10 bytes for 16 weights: d, 8 bytes of neighbouring nibbles; d * (q - 8)."""
    return _neighbours(blocks[:, 2:]).to(torch.int8) - 8, half(blocks[:, :2])


def unpack_q5_0_v1(blocks: Tensor) -> Unpacked:
    """22 bytes: d, 32 fifth bits, 16 bytes of neighbouring nibbles; d * (q - 16)."""
    q = _neighbours(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6])
    return q.to(torch.int8) - 16, half(blocks[:, :2]).repeat_interleave(2, dim=1)


def unpack_q8_0_v1(blocks: Tensor) -> Unpacked:
    """36 bytes: d as float32, 32 signed bytes; d * q."""
    return blocks[:, 4:].clone().view(torch.int8), _single(blocks[:, :4]).repeat_interleave(2, dim=1)


def decode_q4_1_v1(blocks: Tensor) -> Tensor:
    """24 bytes: d and m as float32, 16 bytes of neighbouring nibbles; d * q + m."""
    return _single(blocks[:, :4]) * _neighbours(blocks[:, 8:]).float() + _single(blocks[:, 4:8])


def decode_q4_1_v2(blocks: Tensor) -> Tensor:
    """24 bytes: d and m as float32, 16 bytes of nibbles; d * q + m."""
    return _single(blocks[:, :4]) * nibbles(blocks[:, 8:]) + _single(blocks[:, 4:8])


def decode_q4_3(blocks: Tensor) -> Tensor:
    """12 bytes for 16 weights: d, m, 8 bytes of neighbouring nibbles; d * q + m."""
    return half(blocks[:, :2]) * _neighbours(blocks[:, 4:]).float() + half(blocks[:, 2:4])


def decode_q5_1_v1(blocks: Tensor) -> Tensor:
    """24 bytes: d, m, 32 fifth bits, 16 bytes of neighbouring nibbles; d * q + m."""
    q = _neighbours(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8])
    return half(blocks[:, :2]) * q.float() + half(blocks[:, 2:4])


def _neighbours(data: Tensor) -> Tensor:
    """The low and then the high nibble of each byte: uint8 (blocks, n) -> (blocks, 2 * n)."""
    return bit_fields(data, width=4, span=1).flatten(1)


def _fifth_bits(data: Tensor) -> Tensor:
    """Bit i of the block as 0 or 16: uint8 (blocks, 4) -> (blocks, 32)."""
    return bit_fields(data, width=1, span=1).flatten(1) << 4


def _single(data: Tensor) -> Tensor:
    """Four bytes as float32: uint8 (blocks, 4) -> (blocks, 1)."""
    return data.clone(memory_format=torch.contiguous_format).view(torch.float32)
