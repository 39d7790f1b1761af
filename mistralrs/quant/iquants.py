"""Reference unpackers, in torch, of the codebook types (IQ), the ternary ones (TQ) and MXFP4.

An unpacker takes blocks as uint8 of shape (blocks, block_bytes) and returns small integers, int8 of shape (blocks,
block_len), and the scale of each 16 of them, float32 of shape (blocks, block_len / 16). The weight is their product,
exactly. The layouts are those of ggml's `ggml-common.h`; the codebooks come from the `gguf` package.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mistralrs.quant.legacy import bit_fields, half

Unpacked = tuple[Tensor, Tensor]
"""int8 (blocks, block_len), float32 (blocks, block_len / 16)."""

_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Values of the 16 codes of IQ4_NL and IQ4_XS."""
_DOUBLED_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the values of the 16 codes of MXFP4, one of which is 0.5."""


def unpack_iq2_xxs(blocks: Tensor) -> Unpacked:
    """66 bytes: d, then per 32 weights four bytes of index and a word of four 7-bit signs and a 4-bit scale."""
    d, groups = half(blocks[:, :2]), blocks[:, 2:].reshape(-1, 8, 8)
    signs, scale = _signs_and_scale(groups[:, :, 4:])
    values = _rows("IQ2_XXS", groups[:, :, :4].flatten(1)) * signs
    return values, (d * (0.5 + scale) * 0.25).repeat_interleave(2, dim=1)


def unpack_iq2_xs(blocks: Tensor) -> Unpacked:
    """74 bytes: d, 32 words of a 9-bit index and 7 bits of sign, 16 nibbles of scale."""
    d, words = half(blocks[:, :2]), _words(blocks[:, 2:66], size=2)
    values = _rows("IQ2_XS", words & 511) * _sign_bits(_even_signs()[words >> 9])
    return values, d * (0.5 + _nibble_pairs(blocks[:, 66:])) * 0.25


def unpack_iq2_s(blocks: Tensor) -> Unpacked:
    """82 bytes: d, 32 bytes of index, 32 of sign, 8 of upper index bits, 16 nibbles of scale."""
    d, low, signs, high, scales = blocks.split_with_sizes((2, 32, 32, 8, 8), dim=1)
    index = low.long() | (bit_fields(high, width=2, span=1).flatten(1).long() << 8)
    return _rows("IQ2_S", index) * _sign_bits(signs), half(d) * (0.5 + _nibble_pairs(scales)) * 0.25


def unpack_iq3_xxs(blocks: Tensor) -> Unpacked:
    """98 bytes: d, 64 bytes of index, 8 words of four 7-bit signs and a 4-bit scale."""
    d, index, words = blocks.split_with_sizes((2, 64, 32), dim=1)
    signs, scale = _signs_and_scale(words.reshape(-1, 8, 4))
    return _rows("IQ3_XXS", index) * signs, (half(d) * (0.5 + scale) * 0.5).repeat_interleave(2, dim=1)


def unpack_iq3_s(blocks: Tensor) -> Unpacked:
    """110 bytes: d, 64 bytes of index, 8 of ninth index bits, 32 of sign, 8 nibbles of scale."""
    d, low, high, signs, scales = blocks.split_with_sizes((2, 64, 8, 32, 4), dim=1)
    index = low.long() | (bit_fields(high, width=1, span=1).flatten(1).long() << 8)
    scale = half(d) * (1.0 + 2.0 * _nibble_pairs(scales))
    return _rows("IQ3_S", index) * _sign_bits(signs), scale.repeat_interleave(2, dim=1)


def unpack_iq1_s(blocks: Tensor) -> Unpacked:
    """50 bytes: d, 32 bytes of index, 8 words of four 3-bit upper indices, a 3-bit scale and the sign of the shift.

    Weights are d * (2 * scale + 1) * (-1, 0 or 1, shifted by 1/8); the integers are eight times that.
    """
    d, low, rest = blocks.split_with_sizes((2, 32, 16), dim=1)
    words = _words(rest, size=2)  # (blocks, 8)
    index = low.long() | (_shifted(words, 0, 3, 6, 9, mask=7) << 8)
    shift = 1 - 2 * (words >> 15).to(torch.int8)
    values = _rows("IQ1_S", index) * 8 + shift.repeat_interleave(32, dim=1)
    scale = half(d) * (2 * ((words >> 12) & 7) + 1).float() / 8.0
    return values, scale.repeat_interleave(2, dim=1)


def unpack_iq1_m(blocks: Tensor) -> Unpacked:
    """56 bytes: 32 bytes of index, 32 nibbles of upper index and sign of the shift, 4 words of scales; as IQ1_S.

    Each word has four 3-bit scales; the upper nibbles of the words make d.
    """
    low, nibbles, rest = blocks.split_with_sizes((32, 16, 8), dim=1)
    words = _words(rest, size=2)  # (blocks, 4)
    d = ((words >> 12) << torch.tensor((0, 4, 8, 12))).sum(dim=1, keepdim=True).to(torch.int16)
    high = bit_fields(nibbles, width=4, span=1).flatten(1).long()  # (blocks, 32)
    shift = 1 - 2 * (high >> 3).to(torch.int8)
    values = _rows("IQ1_S", low.long() | ((high & 7) << 8)) * 8 + shift.repeat_interleave(8, dim=1)
    return values, d.view(torch.float16).float() * (2 * _shifted(words, 0, 3, 6, 9, mask=7) + 1).float() / 8.0


def unpack_iq4_nl(blocks: Tensor) -> Unpacked:
    """18 bytes: d, 16 bytes of codes."""
    values = _coded(_NONLINEAR, blocks[:, 2:])
    return values, half(blocks[:, :2]).repeat_interleave(2, dim=1)


def unpack_iq4_xs(blocks: Tensor) -> Unpacked:
    """136 bytes: d, a word of 8 upper scale bit pairs, 8 nibbles of scale, 128 bytes of codes; d * (scale - 32)."""
    d, high, low, codes = blocks.split_with_sizes((2, 2, 4, 128), dim=1)
    upper = _shifted(_words(high, size=2), *range(0, 16, 2), mask=3).float()
    scale = half(d) * (_nibble_pairs(low) + 16.0 * upper - 32.0)
    return _coded(_NONLINEAR, codes), scale.repeat_interleave(2, dim=1)


def unpack_tq1_0(blocks: Tensor) -> Unpacked:
    """54 bytes: 48 bytes of five ternary digits, 4 bytes of four, d; a digit is -1, 0 or 1.

    A byte is the fraction of 256 that its digits make, so multiplying it by 3 moves the next digit past the point.
    """
    first, second, third, d = blocks.split_with_sizes((32, 16, 4, 2), dim=1)
    parts = [_ternary(first, 5), _ternary(second, 5), _ternary(third, 4)]
    return torch.cat(parts, dim=1), half(d).repeat_interleave(16, dim=1)


def unpack_tq2_0(blocks: Tensor) -> Unpacked:
    """66 bytes: 64 bytes of bit pairs, d; d * (q - 1)."""
    values = bit_fields(blocks[:, :64], width=2, span=32).flatten(1).to(torch.int8) - 1
    return values, half(blocks[:, 64:]).repeat_interleave(16, dim=1)


def unpack_mxfp4(blocks: Tensor) -> Unpacked:
    """17 bytes: the exponent e, 16 bytes of codes; 2 ** (e - 127) times E2M1 numbers, which are taken doubled."""
    exponent = blocks[:, :1].int()
    # Bits of the float32 2 ** (e - 128); the smallest two are subnormal.
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return _coded(_DOUBLED_E2M1, blocks[:, 1:]), bits.view(torch.float32).repeat_interleave(2, dim=1)


@cache
def _codebook(name: str) -> Tensor:
    """The codebook of a type: int8 (entries, 4 or 8)."""
    from gguf import quants  # imported late: it takes a sixth of a second, and only these types need it

    holder = getattr(quants, name)
    holder.init_grid()
    return torch.from_numpy(holder.grid).reshape(holder.grid_shape).to(torch.int8)


def _rows(codebook: str, index: Tensor) -> Tensor:
    """The codebook's entries one after the other: (blocks, n) -> int8 (blocks, n * 4 or n * 8)."""
    return _codebook(codebook)[index.long()].flatten(1)


@cache
def _even_signs() -> Tensor:
    """Seven sign bits and the eighth that makes their number even: uint8 (128,)."""
    return torch.tensor([bits | (bits.bit_count() & 1) << 7 for bits in range(128)], dtype=torch.uint8)


def _sign_bits(data: Tensor) -> Tensor:
    """1 or -1 for each bit, lowest first: uint8 (blocks, n) -> int8 (blocks, 8 * n)."""
    return 1 - 2 * bit_fields(data, width=1, span=1).flatten(1).to(torch.int8)


def _signs_and_scale(words: Tensor) -> Unpacked:
    """uint8 (blocks, 8, 4): four groups of 7 sign bits and a 4-bit scale -> int8 (blocks, 256), float32 (blocks, 8)."""
    whole = _words(words.flatten(1), size=4)  # (blocks, 8)
    return _sign_bits(_even_signs()[_shifted(whole, 0, 7, 14, 21, mask=127)]), (whole >> 28).float()


def _words(data: Tensor, *, size: int) -> Tensor:
    """Little-endian words of 2 or 4 bytes: uint8 (blocks, n) -> int64 (blocks, n / size), not negative."""
    parts = data.reshape(data.shape[0], -1, size).long()
    return (parts << torch.arange(0, 8 * size, 8)).sum(dim=2)


def _shifted(words: Tensor, *shifts: int, mask: int) -> Tensor:
    """Bit fields of words, those of one word side by side: (blocks, n) -> (blocks, n * number of shifts)."""
    return ((words[:, :, None] >> torch.tensor(shifts)) & mask).flatten(1)


def _nibble_pairs(data: Tensor) -> Tensor:
    """Low then high nibble of each byte, as float32: uint8 (blocks, n) -> (blocks, 2 * n)."""
    return bit_fields(data, width=4, span=1).flatten(1).float()


def _coded(codes: tuple[int, ...], data: Tensor) -> Tensor:
    """16 bytes hold the codes of 32 weights, first all low nibbles: uint8 (blocks, n) -> int8 (blocks, 2 * n)."""
    nibbles = bit_fields(data, width=4, span=16).flatten(1)
    return torch.tensor(codes, dtype=torch.int8)[nibbles.long()]


def _ternary(data: Tensor, digits: int) -> Tensor:
    """The first digits of all bytes, then the second ones: uint8 (blocks, n) -> int8 (blocks, digits * n)."""
    powers = torch.tensor([3**digit for digit in range(digits)]).view(1, -1, 1)
    fraction = (data[:, None, :].long() * powers) & 255
    return (((fraction * 3) >> 8) - 1).flatten(1).to(torch.int8)
