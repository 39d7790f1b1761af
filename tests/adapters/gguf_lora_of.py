"""Writes a PEFT adapter as a GGUF LoRA file, the way llama.cpp's `convert_lora_to_gguf.py` does.

Keys come from `gguf`'s writer and tensor names from its map, not from what the reader looks for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file

from tests.architectures import read_config
from tests.gguf_of import ARCHITECTURES_IN_GGUF, PAIRED, paired

_EXPERTS = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}
_EXPERT = re.compile(r"model\.layers\.(\d+)\..*experts\.(\d+)\.(\w+)")

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def peft_pairs(adapter: Path) -> Pairs:
    """A and B by module: (rank, columns) and (rows, rank), as `peft` stored them."""
    stored = load_file(adapter / "adapter_model.safetensors")
    pairs: Pairs = {}
    for name, a in stored.items():
        if ".lora_A.weight" in name:
            b = stored[name.replace("lora_A", "lora_B")]
            pairs[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = (a, b)
        elif name.endswith("lora_embedding_A"):
            b = stored[name.replace("embedding_A", "embedding_B")]
            pairs[name.removeprefix("base_model.model.").removesuffix(".lora_embedding_A")] = (a, b)
    return pairs


def write_gguf_lora_of(
    path: Path,
    adapter: Path,
    folder: Path,
    *,
    type_: str | None = None,
    alpha: float | None = -1.0,
    tokens: list[int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes the adapter of the model in ``folder``.

    ``type_``: that of the matrices; None: as they are stored. ``alpha``: -1 is that of the adapter, None leaves it out.
    ``metadata``: texts in place of others. Returns ``path``.
    """
    config = read_config(folder)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    architecture = ARCHITECTURES_IN_GGUF[config["model_type"]]
    told = {"general.type": "adapter", "adapter.type": "lora", **(metadata or {})}
    writer = gguf.GGUFWriter(path, told.pop("general.architecture", gguf.MODEL_ARCH_NAMES[architecture]))
    for key, text in told.items():
        writer.add_string(key, text)
    if alpha is not None:
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]) if alpha == -1 else alpha)
    if tokens is not None:
        key = "adapter.alora.invocation_tokens"
        writer.add_key_value(key, tokens, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, values in _tensors(config, peft_pairs(adapter), names):
        stored = type_ or {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[values.dtype]
        quantized = gguf.GGMLQuantizationType[stored]
        data = gguf.quants.quantize(values.float().contiguous().numpy(), quantized)
        writer.add_tensor(name, data, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(config: dict[str, Any], pairs: Pairs, names: gguf.TensorNameMap) -> Iterator[tuple[str, torch.Tensor]]:
    stacks: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    is_paired = config["model_type"] in PAIRED
    for module, (a, b) in pairs.items():
        expert = _EXPERT.fullmatch(module)
        if expert:
            layer, number, matrix = expert.groups()
            stacks.setdefault(f"blk.{layer}.ffn_{_EXPERTS[matrix]}_exps.weight", {})[int(number)] = (a, b)
            continue
        stored = names.get_name(module)
        assert stored is not None
        if module.endswith("embed_tokens"):
            a = a.T
        elif is_paired and module.endswith("q_proj"):
            b = paired(b, config["num_attention_heads"])
        elif is_paired and module.endswith("k_proj"):
            b = paired(b, config["num_key_value_heads"])
        yield f"{stored}.weight.lora_a", a
        yield f"{stored}.weight.lora_b", b
    for name, members in stacks.items():
        for place, suffix in enumerate(("lora_a", "lora_b")):
            yield f"{name}.{suffix}", torch.stack([members[expert][place] for expert in sorted(members)])
