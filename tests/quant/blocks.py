"""Stored rows made of random block bytes, for tests of decoders and kernels. `gguf` cannot quantize to most types."""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from mistralrs.quant.types import QuantType

ODD_HALVES = np.array(
    [0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, 5.96e-5, -6.1e-5, 65504.0, -65504.0, 0.1, -0.33], dtype=np.float16
)
"""Scales at which a decoder may be wrong: both zeros, the smallest subnormals, the largest values, negative ones."""

HALVES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "Q4_2": (0,),
    "Q4_3": (0, 2),
    "Q5_0_V1": (0,),
    "Q5_1_V1": (0, 2),
}
"""Offsets in a block of its float16 scale and of its minimum (K types: the scale of its minima)."""

MINIMUM_PER_SCALE: dict[str, float] = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
"""The ratio of minimum to scale at which random blocks decode to a mean of zero."""


def random_bytes(type_: QuantType, *, rows: int, columns: int, seed: int) -> NDArray[np.uint8]:
    """Uniform bytes of shape (rows, row_bytes); the float16 scales may be anything, NaN and infinity too."""
    return np.random.default_rng(seed).integers(0, 256, (rows, type_.row_bytes(columns)), dtype=np.uint8)


def odd_rows(type_: QuantType, *, rows: int, columns: int, seed: int) -> NDArray[np.uint8]:
    """Random rows with finite scales, half of them odd ones. Types without scales have any bytes."""
    random = np.random.default_rng(seed + 1)
    blocks = random_bytes(type_, rows=rows, columns=columns, seed=seed).reshape(-1, type_.block_bytes)
    for offset in HALVES.get(type_.name, ()):
        scales = random.normal(scale=0.01, size=len(blocks)).astype(np.float16)
        odd = random.random(len(blocks)) < 0.5
        scales[odd] = random.choice(ODD_HALVES, size=int(odd.sum()))
        _set_halves(blocks, offset, scales)
    if type_.name == "IQ1_M":
        _set_split_half(blocks, random.normal(scale=0.01, size=len(blocks)).astype(np.float16))
    return blocks.reshape(rows, -1)


def sane_rows(type_: QuantType, *, rows: int, columns: int, seed: int, deviation: float) -> NDArray[np.uint8]:
    """Random rows of a quantized type like those of a model: mean near zero, and the given standard deviation."""
    blocks = random_bytes(type_, rows=rows, columns=columns, seed=seed).reshape(-1, type_.block_bytes)
    if type_.name == "TQ2_0":  # no quantizer writes the fourth value, 2
        blocks[:, :64] ^= (blocks[:, :64] & blocks[:, :64] >> 1 & 0x55) << 1
    spread = np.random.default_rng(seed + 1).uniform(0.5, 1.5, len(blocks))
    unit = decoded_deviation(type_, blocks, spread)
    _set_scales(type_, blocks, spread * (deviation / unit))
    return blocks.reshape(rows, -1)


def decoded_deviation(type_: QuantType, blocks: NDArray[np.uint8], scales: NDArray[np.float64]) -> float:
    """Standard deviation of the weights that the blocks would have with these scales."""
    trial = blocks.copy()
    _set_scales(type_, trial, scales)
    return float(gguf.quants.dequantize(trial, gguf.GGMLQuantizationType[type_.name]).std())


def _set_scales(type_: QuantType, blocks: NDArray[np.uint8], scales: NDArray[np.float64]) -> None:
    if type_.name == "IQ1_M":
        return _set_split_half(blocks, scales.astype(np.float16))
    if type_.name == "MXFP4":  # powers of two only
        blocks[:, 0] = 128 + np.round(np.log2(scales))
        return None
    offsets = HALVES[type_.name]
    _set_halves(blocks, offsets[0], scales.astype(np.float16))
    if len(offsets) == 2:
        _set_halves(blocks, offsets[1], (scales * MINIMUM_PER_SCALE[type_.name]).astype(np.float16))
    return None


def _set_halves(blocks: NDArray[np.uint8], offset: int, values: NDArray[np.float16]) -> None:
    blocks[:, offset : offset + 2] = values.view(np.uint8).reshape(-1, 2)


def _set_split_half(blocks: NDArray[np.uint8], values: NDArray[np.float16]) -> None:
    """Stores IQ1_M's scale in the upper nibbles of a block's last four words, the lowest nibble first."""
    bits = values.view(np.uint16)
    for word in range(4):
        high = blocks[:, 49 + 2 * word]
        high[:] = (high & 0x0F) | ((bits >> (4 * word)) & 0x0F).astype(np.uint8) << 4
