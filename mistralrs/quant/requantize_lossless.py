"""Requantizes types without kernels to small integers with a scale for every 16 columns, without loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mistralrs.quant import ggml_versions, iquants
from mistralrs.quant.iquants import Unpacked
from mistralrs.quant.types import QuantType

GROUP = 16
"""Columns that share a scale."""

UNPACKERS: dict[str, Callable[[Tensor], Unpacked]] = {
    "IQ2_XXS": iquants.unpack_iq2_xxs,
    "IQ2_XS": iquants.unpack_iq2_xs,
    "IQ2_S": iquants.unpack_iq2_s,
    "IQ3_XXS": iquants.unpack_iq3_xxs,
    "IQ3_S": iquants.unpack_iq3_s,
    "IQ1_S": iquants.unpack_iq1_s,
    "IQ1_M": iquants.unpack_iq1_m,
    "IQ4_NL": iquants.unpack_iq4_nl,
    "IQ4_XS": iquants.unpack_iq4_xs,
    "TQ1_0": iquants.unpack_tq1_0,
    "TQ2_0": iquants.unpack_tq2_0,
    "MXFP4": iquants.unpack_mxfp4,
    "Q4_0_V1": ggml_versions.unpack_q4_0_v1,
    "Q4_0_V2": ggml_versions.unpack_q4_0_v2,
    "Q4_2": ggml_versions.unpack_q4_2,
    "Q5_0_V1": ggml_versions.unpack_q5_0_v1,
    "Q8_0_V1": ggml_versions.unpack_q8_0_v1,
}
"""Unpackers by type name, as ``iquants`` describes them."""


def requantize_lossless(type_: QuantType, data: Tensor, columns: int) -> Unpacked:
    """Integers and scales, whose product in float32 is the weight, of stored rows of a type in ``types.EXPANDED``.

    ``data`` is uint8 of shape (rows, row_bytes), where row_bytes is ``type_.row_bytes(columns)``. Returns new memory:
    int8 of shape (rows, columns), float32 of shape (rows, columns / 16). Raises ValueError when the shapes do not fit.
    """
    blocks = as_blocks(type_, data, columns)
    values, scales = UNPACKERS[type_.name](blocks)
    return values.reshape(-1, columns), scales.reshape(-1, columns // GROUP)


def decode(name: str) -> Callable[[Tensor], Tensor]:
    """The decoder of one of these types: uint8 (blocks, block_bytes) -> float32 (blocks, block_len)."""

    def decode_blocks(blocks: Tensor) -> Tensor:
        values, scales = UNPACKERS[name](blocks)
        return (values.reshape(*scales.shape, GROUP).float() * scales[:, :, None]).flatten(1)

    return decode_blocks


def as_blocks(type_: QuantType, data: Tensor, columns: int) -> Tensor:
    """Stored rows as (blocks, block_bytes). Raises ValueError when the shapes do not fit the type."""
    if columns % type_.block_len:
        raise ValueError(f"{columns} columns are not a multiple of {type_.name}'s {type_.block_len}")
    if data.dtype != torch.uint8 or data.ndim != 2 or data.shape[1] != type_.row_bytes(columns):
        raise ValueError(
            f"expected uint8 of shape (rows, {type_.row_bytes(columns)}) for {type_.name} rows of {columns} weights, "
            f"got {data.dtype} of shape {tuple(data.shape)}"
        )
    return data.reshape(-1, type_.block_bytes)


def to_i8(type_: QuantType, data: Tensor, columns: int) -> Tensor:
    """The result of ``requantize_lossless`` as rows of ``types.I8``: uint8 (rows, columns / 32 * 40)."""
    values, scales = requantize_lossless(type_, data, columns)
    blocks = torch.empty(len(values), columns // 32, 40, dtype=torch.uint8)
    blocks[:, :, :8] = scales.view(torch.uint8).view(len(values), -1, 8)
    blocks[:, :, 8:] = values.view(torch.uint8).view(len(values), -1, 32)
    return blocks.flatten(1)


def decode_i8(blocks: Tensor) -> Tensor:
    """Blocks of ``types.I8``: uint8 (blocks, 40) -> float32 (blocks, 32)."""
    scales = blocks[:, :8].contiguous().view(torch.float32)
    values = blocks[:, 8:].contiguous().view(torch.int8)
    return (values.reshape(-1, 2, GROUP).float() * scales[:, :, None]).flatten(1)
