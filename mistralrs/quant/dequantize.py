"""Decoding of a stored matrix to float32 by the plain torch decoders: what every faster way is measured against.

Knows the storage types and nothing of files, devices and kernels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mistralrs.quant import ggml_versions, kquants, legacy
from mistralrs.quant.requantize_lossless import UNPACKERS, as_blocks, decode, decode_i8
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
    "Q4_1_V1": ggml_versions.decode_q4_1_v1,
    "Q4_1_V2": ggml_versions.decode_q4_1_v2,
    "Q4_3": ggml_versions.decode_q4_3,
    "Q5_1_V1": ggml_versions.decode_q5_1_v1,
    "I8": decode_i8,
    **{name: decode(name) for name in UNPACKERS},
}
"""Type name -> blocks as uint8 (blocks, block_bytes) to weights as float32 (blocks, block_len)."""


def dequantize(type_: QuantType, data: Tensor, columns: int) -> Tensor:
    """The weights of stored rows.

    ``data`` is uint8 of shape (rows, row_bytes), where row_bytes is ``type_.row_bytes(columns)``. Returns new memory,
    float32 of shape (rows, columns). Raises ValueError when the shapes do not fit the type.
    """
    return DECODERS[type_.name](as_blocks(type_, data, columns)).reshape(-1, columns)
