"""Folders of random X-LoRAs for the tiny models of `tests.architectures`, in the layout of the xlora package."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.adapters.adapter_files import write_json, xlora_content
from tests.architectures import BASE, read_weights

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LLAMA = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
EXPERTS = tuple(f"block_sparse_moe.experts.{expert}.{name}" for expert in range(5) for name in ("w1", "w2", "w3"))
MODULES = {
    "mixtral": (*ATTENTION, "block_sparse_moe.gate", *EXPERTS),
    "phi3": ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "phi2": (*ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2"),
}
"""The modules of a layer in the order of the axis; all other architectures have those of ``LLAMA``."""
NAMES = ("zoology", "algebra", "music")
"""Not in the order of the alphabet: the order of training is that of the configuration."""
RANKS = {"zoology": 2, "algebra": 3, "music": 5}


def axis_of(name: str, *, targets: Sequence[str] = (), layers: int = 4) -> list[str]:
    """The modules of a variant whose last part is one of ``targets`` (default: all), in the order of the axis."""
    modules = MODULES.get(name, LLAMA)
    chosen = [module for module in modules if not targets or module.rpartition(".")[2] in targets]
    axis = [f"model.layers.{layer}.{module}" for layer in range(layers) for module in chosen]
    if "embed_tokens" in targets:
        axis.insert(0, "model.embed_tokens")
    return [*axis, "lm_head"] if "lm_head" in targets else axis


def write_xlora(
    folder: Path, base: Path, axis: Sequence[str], *, seed: int = 0, names: Sequence[str] = NAMES, **settings: object
) -> Path:
    """Writes an X-LoRA with adapters of these ``names``, which act on the modules of ``axis``: `algebra` not on the
    first module's kind. ``settings``: fields of `xlora_config.json`."""
    generator = torch.Generator().manual_seed(seed)
    weights = read_weights(base)
    targets = list(dict.fromkeys(path.rpartition(".")[2] for path in axis))
    for name in names:
        own = targets[1:] if name == "algebra" and len(targets) > 1 else targets
        rank = RANKS.get(name, 4)
        tensors: dict[str, torch.Tensor] = {}
        for path in axis:
            kind = path.rpartition(".")[2]
            if kind not in own:
                continue
            rows, columns = weights[f"{path}.weight"].shape
            key = f"base_model.model.{path}."
            if kind == "embed_tokens":
                tensors[f"{key}lora_embedding_A"] = torch.randn(rank, rows, generator=generator) * 0.2
                tensors[f"{key}lora_embedding_B"] = torch.randn(columns, rank, generator=generator) * 0.2
            else:
                tensors[f"{key}lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.2
                tensors[f"{key}lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.2
        write_json(
            folder / name / "adapter_config.json",
            {
                "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank - 1, "use_rslora": name == "music",
                "target_modules": own, "base_model_name_or_path": None, "lora_dropout": 0.1,
            },
        )  # fmt: skip
        save_file(tensors, folder / name / "adapter_model.safetensors")
    content = xlora_content(
        **{"hidden_size": BASE["hidden_size"], "base_model_id": None, "adapters": list(names), "xlora_size": 24}
        | settings
    )
    write_json(folder / "xlora_config.json", content)
    write_classifier(folder, content, layers=len(axis), adapters=len(names), generator=generator)
    return folder


def write_classifier(
    folder: Path, content: dict[str, object], *, layers: int, generator: torch.Generator, adapters: int = len(NAMES)
) -> None:
    depth, hidden, size = (content.get(key, 1) for key in ("xlora_depth", "hidden_size", "xlora_size"))
    assert isinstance(depth, int)
    assert isinstance(hidden, int)
    assert isinstance(size, int)
    outputs = adapters * (layers if content.get("layerwise_scalings") else 1)
    widths = [hidden, *[size] * (depth - 1), outputs]
    step = 3 if content.get("enable_relu_and_dropout", True) else 1
    tensors = {}
    for number, (columns, rows) in enumerate(itertools.pairwise(widths)):
        name = "last" if number == depth - 1 else f"inner.{number * step}"
        tensors[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * 2 / columns**0.5
        if content.get("use_bias", True):
            tensors[f"{name}.bias"] = torch.randn(rows, generator=generator)
    save_file(tensors, folder / "xlora_classifier.safetensors")
