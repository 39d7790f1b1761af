"""X-LoRA's classifier: from a decoder's hidden states, after the final norm, to the scalings of the adapters.

Buehler and Buehler, X-LoRA (arXiv:2402.07148), section 2; the fields of its configuration as in the xlora package.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mistralrs.adapters.xlora.xlora_config import XLoraConfig
from mistralrs.errors import FormatError
from mistralrs.loading.checkpoint import RawTensor
from mistralrs.loading.cursor import shown
from mistralrs.loading.safetensors_file import SafetensorsFile

_PEFT = "base_model.internal_xlora_classifier.layers."
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LOST = (
    "peft 0.21.2 leaves out layers.0 when it saves an X-LoRA: take it from the training's own state, or save it with "
    "another release"
)
_HINT = "the file is not the classifier of this configuration, or it is damaged: fetch both again"


@dataclass(frozen=True, slots=True)
class Affine:
    """y = weight x + bias."""

    weight: Tensor
    """(rows, columns), float32."""
    bias: Tensor | None
    """(rows,), float32."""


class XLoraClassifier:
    """Linears with their configuration; nothing in it changes once it is made."""

    def __init__(self, config: XLoraConfig, linears: Sequence[Affine], *, num_layers: int) -> None:
        """``linears``: from the first to the last. ``num_layers``: modules on the layer axis."""
        self.config = config
        self.num_layers = num_layers
        self.num_adapters = len(config.adapters)
        self._inner = tuple(linears[:-1])
        self._last = linears[-1]

    def scalings(self, hidden: Tensor) -> Tensor:
        """The scalings (tokens, layers of the axis, adapters) in float32 for hidden states (tokens, hidden size).

        A token's scalings have the same bits whatever tokens stand beside it. ``global_scaling_weight`` is not in them.
        """
        logits = self._logits(hidden.float())  # (tokens, layers or 1, adapters)
        values = logits
        if self.config.enable_softmax:
            values = torch.softmax(logits / self.config.softmax_temperature, dim=-1)
        values = self._chosen(values)
        return values.expand(-1, self.num_layers, -1).contiguous()

    def _logits(self, hidden: Tensor) -> Tensor:
        """The classifier's outputs (tokens, layers or 1, adapters). A matrix product of several tokens at once would
        add in an order that depends on their number."""
        layers = self.num_layers if self.config.layerwise_scalings else 1
        outputs = hidden.new_empty(len(hidden), layers * self.num_adapters)
        for token, row in enumerate(hidden):
            outputs[token] = self._outputs(row.clone())  # a copy is aligned like any other token's
        return outputs.view(len(hidden), layers, self.num_adapters)

    def _outputs(self, state: Tensor) -> Tensor:
        """The outputs for one hidden state."""
        for linear in self._inner:
            state = _applied(linear, state)
            if self.config.enable_relu_and_dropout:
                state = torch.relu(state)
        return _applied(self._last, state)

    def _chosen(self, values: Tensor) -> Tensor:
        """The ``top_k_lora`` largest of ``values`` along the last axis, zeros elsewhere; of equal ones the first."""
        count = self.config.top_k_lora
        if count is None:
            return values
        indices = torch.sort(values, dim=-1, descending=True, stable=True).indices[..., :count]
        kept = values.gather(-1, indices)
        if self.config.enable_softmax_topk:
            kept = torch.softmax(kept, dim=-1)
        return torch.zeros_like(values).scatter(-1, indices, kept)


def _applied(linear: Affine, state: Tensor) -> Tensor:
    if linear.bias is None:
        return torch.mv(linear.weight, state)
    return torch.addmv(linear.bias, linear.weight, state)


def read_classifier(path: Path, config: XLoraConfig, *, num_layers: int) -> XLoraClassifier:
    """The classifier in a safetensors file of the layout that ``config`` has.

    ``num_layers``: modules on the layer axis. Raises ``LoadError`` if the file cannot be read, and ``FormatError`` with
    file, tensor and what was expected for a tensor that is missing, that no linear of the configuration has, of another
    shape, or with a value that is not finite.
    """
    with SafetensorsFile.open(path) as file:
        tensors = file.tensors
        names = _linear_names(config, tensors)
        _check_names(path, config, tensors, names)
        linears = []
        for name, (rows, columns) in zip(names, _shapes(config, num_layers), strict=True):
            weight = _values(path, tensors[f"{name}.weight"], (rows, columns))
            bias = _values(path, tensors[f"{name}.bias"], (rows,)) if config.use_bias else None
            linears.append(Affine(weight, bias))
    return XLoraClassifier(config, linears, num_layers=num_layers)


def _linear_names(config: XLoraConfig, tensors: Mapping[str, RawTensor]) -> list[str]:
    """The linears' names from the first to the last.

    ReLU and dropout are counted in the names, so that a linear's number is a multiple of 1, 2 or 3. Without a set of
    names of which all are there, returns those that the configuration asks for.
    """
    if config.layout == "peft":
        wanted = 3 if config.xlora_dropout_p > 0 else 2
    else:
        wanted = 3 if config.enable_relu_and_dropout else 1
    for step in (wanted, 3, 2, 1):
        names = _names_in_steps(config, step)
        if all(f"{name}.weight" in tensors for name in names):
            return names
    return _names_in_steps(config, wanted)


def _names_in_steps(config: XLoraConfig, step: int) -> list[str]:
    if config.layout == "peft":
        return [f"{_PEFT}{number * step}" for number in range(config.xlora_depth)]
    return [*(f"inner.{number * step}" for number in range(config.xlora_depth - 1)), "last"]


def _check_names(path: Path, config: XLoraConfig, tensors: Mapping[str, RawTensor], names: Sequence[str]) -> None:
    """Raises ``FormatError`` for the first tensor that is missing, or that nothing reads."""
    parts = ("weight", "bias") if config.use_bias else ("weight",)
    wanted = [f"{name}.{part}" for name in names for part in parts]
    of_config = f"of {config.path}, with xlora_depth {config.xlora_depth} and use_bias {str(config.use_bias).lower()}"
    for name in wanted:
        if name not in tensors:
            reason = f"is missing, expected in the classifier {of_config}"
            raise FormatError(
                str(path), f"tensor {name}", reason, hint=_LOST if name.startswith(f"{_PEFT}0.") else _HINT
            )
    for name in tensors:
        if name not in wanted:
            reason = f"is there, but not part of the classifier {of_config}"
            raise FormatError(str(path), f"tensor {shown(name)}", reason, hint=_HINT)


def _shapes(config: XLoraConfig, num_layers: int) -> list[tuple[int, int]]:
    """The shapes of the weights, from the first to the last."""
    outputs = len(config.adapters) * (num_layers if config.layerwise_scalings else 1)
    widths = [config.hidden_size, *[config.xlora_size] * (config.xlora_depth - 1), outputs]
    return [(rows, columns) for columns, rows in itertools.pairwise(widths)]


def _values(path: Path, tensor: RawTensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor's values in float32."""
    place = f"tensor {tensor.name}"
    if tensor.shape != shape:
        reason = f"has the shape {tensor.shape}, expected {shape} by the configuration, the adapters and the layers"
        raise FormatError(str(path), place, reason, hint=_HINT)
    if tensor.type.name not in _DTYPES:
        raise FormatError(str(path), place, f"is {tensor.type.name}, expected {', '.join(_DTYPES)}", hint=_HINT)
    stored = torch.frombuffer(bytearray(tensor.data), dtype=_DTYPES[tensor.type.name]).view(shape)
    values = stored.to(torch.float32, copy=True)  # a copy is aligned, on which the order of additions may depend
    if not torch.isfinite(values).all():
        raise FormatError(str(path), place, "has values that are not finite, expected numbers", hint=_HINT)
    return values
