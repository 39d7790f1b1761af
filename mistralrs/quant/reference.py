"""Decoding of a stored matrix to float32 by the plain torch decoders: what every faster way is measured against.

Knows the storage types and nothing of files, devices and kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mistralrs.quant import kquants, legacy
from mistralrs.quant.types import QuantType

DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": legacy.decode_f32,
    "F16": legacy.decode_f16,
    "BF16": legacy.decode_bf16,
    "Q4_0": legacy.decode_q4_0,
    "Q4_1": legacy.decode_q4_1,
    "Q5_0": legacy.decode_q5_0,
    "Q5_1": legacy.decode_q5_1,
    "Q8_0": legacy.decode_q8_0,
    "Q2_K": kquants.decode_q2_k,
    "Q3_K": kquants.decode_q3_k,
    "Q4_K": kquants.decode_q4_k,
    "Q5_K": kquants.decode_q5_k,
    "Q6_K": kquants.decode_q6_k,
}
"""Type name -> blocks as uint8 (blocks, block_bytes) to weights as float32 (blocks, block_len)."""


def dequantise(type_: QuantType, data: Tensor, columns: int) -> Tensor:
    """The weights of stored rows.

    ``data`` is uint8 of shape (rows, row_bytes), where row_bytes is ``type_.row_bytes(columns)``. Returns new memory,
    float32 of shape (rows, columns). Raises ValueError when the shapes do not fit the type.
    """
    if columns % type_.block_len:
        raise ValueError(f"{columns} columns are not a multiple of {type_.name}'s {type_.block_len}")
    if data.dtype != torch.uint8 or data.ndim != 2 or data.shape[1] != type_.row_bytes(columns):
        raise ValueError(
            f"expected uint8 of shape (rows, {type_.row_bytes(columns)}) for {type_.name} rows of {columns} weights, "
            f"got {data.dtype} of shape {tuple(data.shape)}"
        )
    return DECODERS[type_.name](data.reshape(-1, type_.block_bytes)).reshape(-1, columns)
