"""X-LoRA's classifier written down from the paper's equations, number by number in float64.

Buehler and Buehler, "X-LoRA: Mixture of low-rank adapter experts" (arXiv:2402.07148), section 2. It shares no code and
no tensor operation with the product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Linear = tuple[Array, Array | None]


def reference_scalings(
    hidden: Array,
    linears: Sequence[Linear],
    *,
    layers: int,
    adapters: int,
    layerwise: bool,
    relu: bool,
    softmax: bool,
    temperature: float,
    top_k: int | None,
    softmax_topk: bool,
) -> Array:
    """The scalings (tokens, layers, adapters) for hidden states (tokens, hidden size)."""
    result = np.zeros((len(hidden), layers, adapters))
    for token, state in enumerate(hidden):
        outputs = _outputs([float(value) for value in state], linears, relu=relu)
        for layer in range(layers):
            first = layer * adapters if layerwise else 0
            values = outputs[first : first + adapters]
            if softmax:
                values = _softmax([value / temperature for value in values])
            if top_k is not None:
                values = _largest(values, top_k, softmax=softmax_topk)
            result[token, layer] = values
    return result


def _outputs(state: list[float], linears: Sequence[Linear], *, relu: bool) -> list[float]:
    for number, (weight, bias) in enumerate(linears):
        sums = []
        for row in range(len(weight)):
            products = [float(weight[row, column]) * value for column, value in enumerate(state)]
            sums.append(math.fsum(products) + (0.0 if bias is None else float(bias[row])))
        is_last = number == len(linears) - 1
        state = [max(value, 0.0) for value in sums] if relu and not is_last else sums
    return state


def _softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    return [power / math.fsum(powers) for power in powers]


def _largest(values: Sequence[float], count: int, *, softmax: bool) -> list[float]:
    """The ``count`` largest values, of equal ones those that come first; zeros in place of the others."""
    chosen = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    kept = [values[index] for index in chosen]
    if softmax:
        kept = _softmax(kept)
    result = [0.0] * len(values)
    for index, value in zip(chosen, kept, strict=True):
        result[index] = value
    return result
