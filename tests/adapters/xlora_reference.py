"""X-LoRA written down from the paper's equations: the classifier number by number, the two passes on `transformers`'
models, all in float64.

Buehler and Buehler, "X-LoRA: Mixture of low-rank adapter experts" (arXiv:2402.07148), section 2. It shares no code and
no file reader with the product.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from tests.architectures import read_weights, reference

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


class ReferenceXLora:
    """The model in ``base`` with the X-LoRA in ``folder``, whose layer axis is ``axis``: names of modules."""

    def __init__(self, base: Path, folder: Path, axis: Sequence[str]) -> None:
        self.settings: dict[str, Any] = json.loads((folder / "xlora_config.json").read_text())
        self.classifier = load_file(folder / "xlora_classifier.safetensors")
        self.adapters = [_Adapter(folder / name) for name in self.settings["adapters"]]
        self.axis = list(axis)
        self.model = reference(base).double()
        self._scalings: torch.Tensor | None = None
        weights = read_weights(base)
        for name, module in self.model.named_modules():
            if name in self.axis:
                module.register_forward_hook(partial(self._hook, name))
            if type(module).__name__ == "MixtralSparseMoeBlock":
                path = name.removesuffix("mlp") + "block_sparse_moe"
                cast(Any, module).forward = partial(self._mixtral, path, module, weights)

    def logits(self, tokens: Sequence[int], *, num_prompt: int = 0, non_granular: int | None = None) -> torch.Tensor:
        """(tokens, vocabulary): from position ``num_prompt + non_granular`` on, the scalings are those of the position
        before."""
        scalings = self.scalings(tokens)
        if non_granular is not None:
            last = num_prompt + non_granular - 1
            scalings[last + 1 :] = scalings[last]
        return cast(torch.Tensor, self._run(self.model, tokens, scalings).logits[0])

    def states(self, tokens: Sequence[int]) -> torch.Tensor:
        """(tokens, hidden size): those of the full pass, after the final norm."""
        base = cast(Any, self.model).model
        return cast(torch.Tensor, self._run(base, tokens, self.scalings(tokens)).last_hidden_state[0])

    def scalings(self, tokens: Sequence[int]) -> torch.Tensor:
        """(tokens, axis, adapters), from the states after the final norm of a pass with ``scaling_pass_value``."""
        dummy = float(self.settings.get("scaling_pass_value", 0.0))
        shape = len(tokens), len(self.axis), len(self.adapters)
        base = cast(Any, self.model).model
        states = self._run(base, tokens, torch.full(shape, dummy, dtype=torch.float64)).last_hidden_state[0]
        settings = self.settings
        names = sorted(name.removesuffix(".weight") for name in self.classifier if name.endswith(".weight"))
        values = reference_scalings(
            states.numpy(),
            [(self._numbers(f"{name}.weight"), self._bias(name)) for name in names],  # inner.0 to inner.9, last
            layers=len(self.axis),
            adapters=len(self.adapters),
            layerwise=settings.get("layerwise_scalings", False),
            relu=settings.get("enable_relu_and_dropout", True),
            softmax=settings.get("enable_softmax", True),
            temperature=settings.get("softmax_temperature", 1.0),
            top_k=settings.get("top_k_lora"),
            softmax_topk=settings.get("enable_softmax_topk", False),
        )
        return torch.from_numpy(values)

    def _numbers(self, name: str) -> Array:
        return self.classifier[name].double().numpy()

    def _bias(self, name: str) -> Array | None:
        return self._numbers(f"{name}.bias") if f"{name}.bias" in self.classifier else None

    def _run(self, model: Callable[..., Any], tokens: Sequence[int], scalings: torch.Tensor) -> Any:
        self._scalings = scalings
        with torch.inference_mode():
            return model(input_ids=torch.tensor([list(tokens)]), use_cache=False)

    def _added(self, path: str, x: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor | float:
        """The sum over the adapters of g * sigma * scale * B (A x); x (rows of the sequence, columns)."""
        if path not in self.axis:
            return 0.0
        assert self._scalings is not None
        sigma = self._scalings[rows, self.axis.index(path)]  # (rows, adapters)
        weight = float(self.settings.get("global_scaling_weight", 1.0))
        return sum(weight * sigma[:, i, None] * each.addition(path, x) for i, each in enumerate(self.adapters))

    def _hook(self, path: str, module: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output + self._added(path, inputs[0][0])

    def _mixtral(self, path: str, block: Any, weights: dict[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """Its feed-forward as Jiang et al. (arXiv:2401.04088) write it, expert by expert."""
        x = states[0]

        def linear(name: str, x: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
            return x @ weights[f"{path}.{name}.weight"].double().T + self._added(f"{path}.{name}", x, rows)

        probabilities = torch.softmax(linear("gate", x), dim=-1)
        best = probabilities.topk(block.top_k)
        shares = best.values / best.values.sum(dim=-1, keepdim=True)
        result = torch.zeros_like(x)
        for expert in range(probabilities.shape[1]):
            rows, place = (best.indices == expert).nonzero(as_tuple=True)
            of, name = x[rows], f"experts.{expert}"
            inner = torch.nn.functional.silu(linear(f"{name}.w1", of, rows)) * linear(f"{name}.w3", of, rows)
            result[rows] += shares[rows, place, None] * linear(f"{name}.w2", inner, rows)
        return result[None]


class _Adapter:
    """One LoRA adapter in a folder."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        divisor = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
        self.scale = float(config["lora_alpha"] / divisor)
        self.tensors = {name: value.double() for name, value in load_file(folder / "adapter_model.safetensors").items()}

    def addition(self, path: str, x: torch.Tensor) -> torch.Tensor | float:
        """Scale * B (A x) for x (rows, columns); of an embedding x is (rows,) token ids."""
        start = f"base_model.model.{path}."
        if f"{start}lora_embedding_A" in self.tensors:
            a, b = (self.tensors[f"{start}lora_embedding_{side}"] for side in "AB")
            return self.scale * a.T[x] @ b.T
        if f"{start}lora_A.weight" not in self.tensors:
            return 0.0
        a, b = (self.tensors[f"{start}lora_{side}.weight"] for side in "AB")
        return self.scale * (x @ a.T) @ b.T
