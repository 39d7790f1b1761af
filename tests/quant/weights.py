"""Weights for comparing quantizers, and the error measure. It needs numpy alone, for the script that runs llama.cpp.

They come from uniform numbers, the only stream of numpy's generators that is the same in every version.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mistralrs.loading.gguf_file import GgufFile, RawTensor

Floats = NDArray[np.float32]

MODEL_TENSORS = {
    "feed-forward": "blk.3.ffn_down.weight",
    "query": "blk.10.attn_q.weight",
    "embedding": "token_embd.weight",
}
"""Tensors of the default model. All but the last are stored as Q4_1, so blocks that fit them lose nothing."""


def gaussian_rows(rows: int, *, columns: int, seed: int) -> Floats:
    """Normal weights, standard deviation 0.02: (rows, columns)."""
    uniform = _uniform(2, rows, columns, seed=seed)
    return (0.02 * _normal(uniform[0], uniform[1])).astype(np.float32)


def student_rows(rows: int, *, columns: int, seed: int) -> Floats:
    """Weights of Student's t distribution with four degrees of freedom, which has outliers: (rows, columns)."""
    uniform = _uniform(4, rows, columns, seed=seed)
    chi_squared = -2.0 * np.log(uniform[2] * uniform[3])  # four degrees of freedom
    normal = _normal(uniform[0], uniform[1])
    drawn: NDArray[np.float64] = normal / np.sqrt(chi_squared / 4.0)
    return (0.02 * drawn).astype(np.float32)


def relative_error(weights: Floats, decoded: Floats) -> float:
    """Returns the root of the sum of squared differences over the sum of squared weights."""
    difference = weights.astype(np.float64) - decoded
    return float(np.sqrt((difference**2).sum() / (weights.astype(np.float64) ** 2).sum()))


def generated() -> dict[str, Floats]:
    """Returns the sets that need no model: each (16, 1024)."""
    return {
        "gaussian": gaussian_rows(16, columns=1024, seed=1),
        "student": student_rows(16, columns=1024, seed=2),
    }


def of_model(path: Path, decode: Callable[[RawTensor], Floats]) -> dict[str, Floats]:
    """Returns the sets that are rows of the default model, flattened to rows of 768: each (256, 768).

    ``decode`` turns a stored tensor into its weights.
    """
    with GgufFile.open(path) as file:
        return {
            name: decode(file.tensors[tensor]).reshape(-1)[: 256 * 768].reshape(256, 768)
            for name, tensor in MODEL_TENSORS.items()
        }


def _uniform(count: int, rows: int, columns: int, *, seed: int) -> NDArray[np.float64]:
    return 1.0 - np.random.Generator(np.random.PCG64(seed)).random((count, rows, columns))  # in (0, 1]


def _normal(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = np.sqrt(-2.0 * np.log(first)) * np.cos(2.0 * np.pi * second)
    return normal
