"""Decodes a stored matrix to float32 by reference decoders.

The `gguf` package decodes the types with a scale for each block that GGUF files have today. The plain types, those of
older files, and those that are unpacked to integers first are decoded here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mistralrs.quant import ggml_versions, legacy
from mistralrs.quant.requantize_lossless import UNPACKERS, as_blocks, decode, decode_i8
from mistralrs.quant.types import QuantType

_BY_GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def _gguf_decoder(name: str) -> Callable[[Tensor], Tensor]:
    """The `gguf` package's decoder of a type."""

    def decode_blocks(blocks: Tensor) -> Tensor:
        import gguf  # here, because the kernels need none of these decoders, and it costs 30 ms

        row = blocks.numpy().reshape(1, -1)  # all at once: of many rows it takes 16 at a time
        with np.errstate(all="ignore"):  # the caller handles scales that are not finite, as in torch
            weights = gguf.quants.dequantize(row, gguf.GGMLQuantizationType[name])
        return torch.from_numpy(weights).view(len(blocks), -1)

    return decode_blocks


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": legacy.decode_f32,
    "F16": legacy.decode_f16,
    "BF16": legacy.decode_bf16,
    "Q4_1_V1": ggml_versions.decode_q4_1_v1,
    "Q4_1_V2": ggml_versions.decode_q4_1_v2,
    "Q4_3": ggml_versions.decode_q4_3,
    "Q5_1_V1": ggml_versions.decode_q5_1_v1,
    "I8": decode_i8,
    **{name: _gguf_decoder(name) for name in _BY_GGUF},
    **{name: decode(name) for name in UNPACKERS},
}
"""Decoders by type name, each from uint8 (blocks, block_bytes) to float32 (blocks, block_len)."""


def dequantize(type_: QuantType, data: Tensor, columns: int) -> Tensor:
    """The weights of stored rows.

    ``data`` is uint8 of shape (rows, row_bytes), where row_bytes is ``type_.row_bytes(columns)``. Returns new memory,
    float32 of shape (rows, columns). Raises ValueError if the shapes do not fit the type.
    """
    return DECODERS[type_.name](as_blocks(type_, data, columns)).reshape(-1, columns)


def dequantize_vector(type_: QuantType, data: memoryview) -> array[float]:
    """The float32 weights of one stored row. Raises ValueError if ``data`` does not split in blocks of the type."""
    columns = len(data) // type_.block_bytes * type_.block_len
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(1, -1)
    return array("f", dequantize(type_, raw, columns).numpy().tobytes())
