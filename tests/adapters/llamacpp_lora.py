"""The adapters of llama.cpp's golden logits, shared by the script that writes them and the test that reads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mistralrs.adapters.tools.convert_adapter import convert_adapter
from tests.architectures import read_weights
from tests.gguf_of import Layout, write_gguf
from tests.parity.llamacpp import IGNORED_WINDOWS
from tests.tiny import hashed_weights

GOLDEN = Path(__file__).parent / "golden" / "llamacpp_lora.json"
VARIANTS_WITH_GOLDEN = ("llama", "mixtral", "gemma", "phi2", "phi3", "qwen3")
ALPHA, RANK, OTHER_RANK = 6, 4, 2


def write_peft_adapter(path: Path, folder: Path) -> Path:
    """An adapter of every matrix in the layers, in peft's files, with rslora and two ranks. Returns ``path``."""
    path.mkdir()
    tensors = {}
    for name, weight in sorted(read_weights(folder).items()):
        if weight.dim() != 2 or "layers" not in name:
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        rank = OTHER_RANK if ".v_proj." in name else RANK
        for letter, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
            key = f"{module}.lora_{letter}.weight"
            tensors[key] = torch.from_numpy(hashed_weights(key, shape, scale=0.25))
    save_file(tensors, path / "adapter_model.safetensors")
    modules = sorted({name.split(".")[-3] for name in tensors})
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "use_rslora": True,
        "rank_pattern": {"v_proj": OTHER_RANK},
        "target_modules": modules,
    }
    (path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def write_files(path: Path, name: str, folder: Path) -> tuple[Path, Path]:
    """The model of a variant and its adapter as GGUF files in the folder ``path``, in float32; our writer makes the
    adapter."""
    model = write_gguf(path / "model.gguf", folder, type_="F32", layout=Layout(window=name not in IGNORED_WINDOWS))
    adapter = write_peft_adapter(path / "adapter", folder)
    convert_adapter(adapter, model, path / "adapter.gguf", to="gguf")
    return model, path / "adapter.gguf"
