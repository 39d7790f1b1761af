"""Adapters that `peft` itself has made for the tiny models of `tests.architectures`, and what `peft` makes of them.

Importing this module imports `peft`, which takes some seconds: nothing of the product may.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tests.architectures import reference

Load = Callable[[Path], PreTrainedModel]
"""How the base is made of its folder."""


def write_adapter(
    path: Path,
    folder: Path,
    *,
    seed: int = 0,
    deviation: float = 0.1,
    settings: Mapping[str, Any] | None = None,
    loads: Load = reference,
) -> Path:
    """Writes an adapter for the model in ``folder``, as `save_pretrained` does, with numbers from ``seed``.

    ``settings``: arguments of `LoraConfig`; those that are not given are ``default_settings``.
    ``deviation``: of the weights in A and B, of what is added to magnitudes, biases, norms and replaced modules.
    Returns ``path``, which then has `adapter_config.json` and `adapter_model.safetensors`.
    """
    with quiet():
        model = get_peft_model(loads(folder), LoraConfig(**{**default_settings(), **(settings or {})}))
        fill(model, seed=seed, deviation=deviation)
        model.save_pretrained(path)
    return path


def default_settings() -> dict[str, Any]:
    """The arguments of `LoraConfig` for a plain adapter of the attention's q and v."""
    return {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}


def fill(model: torch.nn.Module, *, seed: int, deviation: float) -> None:
    """Draws every trainable parameter: A and B from a normal distribution, all others near what they were."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator) * deviation
        fresh = "lora_A" in name or "lora_B" in name or "lora_embedding" in name
        with torch.no_grad():
            parameter.copy_(noise if fresh else parameter + noise * parameter.abs().mean().clamp(min=0.1))


def adapted(
    folder: Path,
    adapters: Mapping[str, Path],
    *,
    weights: Mapping[str, float] | None = None,
    loads: Load = reference,
) -> PeftModel:
    """`peft`'s model of ``folder`` in float32 with the ``adapters`` by name; all of ``weights`` act (default: all of
    the adapters, with weight 1), as the weighted sum of their additions."""
    chosen = dict.fromkeys(adapters, 1.0) if weights is None else dict(weights)
    with quiet():
        (first, path), *others = adapters.items()
        model = PeftModel.from_pretrained(loads(folder), str(path), adapter_name=first)
        for name, path in others:
            model.load_adapter(str(path), adapter_name=name)
        cast(Any, model.base_model).set_adapter(list(chosen), inference_mode=True)
        for module in model.modules():
            for name, weight in chosen.items():
                if weight != 1.0 and hasattr(module, "scale_layer") and name in getattr(module, "scaling", {}):
                    module.scaling[name] *= weight
    model.eval()
    return model


def adapted_logits(
    folder: Path,
    adapters: Mapping[str, Path],
    tokens: Sequence[int],
    *,
    weights: Mapping[str, float] | None = None,
    loads: Load = reference,
) -> torch.Tensor:
    """(tokens, vocabulary) float32: the logits of ``adapted`` for one sequence."""
    model = adapted(folder, adapters, weights=weights, loads=loads)
    with quiet(), torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([list(tokens)])).logits[0]
    return logits


@contextmanager
def quiet() -> Iterator[None]:
    """Ignores the warnings of `peft` and `transformers`, which tests would otherwise meet as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
