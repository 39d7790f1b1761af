"""Writes a LoRA adapter as `peft` saves it: a folder with `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.adapters.lora.lora_config import CONFIG_NAME
from mistralrs.adapters.lora.lora_pairs import LoraPair, pairs_of, stored_bytes, stored_type
from mistralrs.adapters.lora.lora_targets import targets_of
from mistralrs.adapters.lora.module_names import hugging_face_form
from mistralrs.adapters.lora.peft_tensors import WEIGHTS_NAME
from mistralrs.loading.new_file import explaining, new_file
from mistralrs.loading.safetensors_writer import SafetensorsInfo, write_safetensors
from mistralrs.models.architecture import WeightsMapping
from mistralrs.models.spec import DecoderSpec

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."


def write_peft(
    adapter: LoraAdapter, out: Path, *, architecture: str, spec: DecoderSpec, base: str | None = None
) -> None:
    """Writes the folder ``out`` for the `transformers` model of ``architecture`` (a key of ``ARCHITECTURES``).

    A folder that is there keeps its other files. ``base``: the name or hub id of the base model.
    Raises ``LoadError`` for an adapter that such a folder cannot hold, or if it cannot be written.
    """
    form = hugging_face_form(architecture, spec)
    pairs = pairs_of(adapter, form, spec)
    config = json.dumps(_config(adapter, pairs, form, spec, base), indent=2).encode() + b"\n"
    named = [item for pair in pairs for item in _tensors(pair)]
    infos = [SafetensorsInfo(name, stored_type(values), tuple(values.shape)) for name, values in named]
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with explaining(out):
        partial.mkdir()
    try:
        contents = ([stored_bytes(values)] for _, values in named)
        write_safetensors(partial / WEIGHTS_NAME, infos, contents, metadata={"format": "pt"})
        with new_file(partial / CONFIG_NAME, len(config)) as put:
            put(memoryview(config))
        _put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, out: Path) -> None:
    with explaining(out):
        if not out.is_dir():
            partial.rename(out)
            return
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            (partial / name).replace(out / name)


def _tensors(pair: LoraPair) -> Iterable[tuple[str, torch.Tensor]]:
    module = _PREFIX + module_of(pair.tensor)
    if pair.is_embedding:
        return (f"{module}.lora_embedding_A", pair.a.T.contiguous()), (f"{module}.lora_embedding_B", pair.b)
    return (f"{module}.lora_A.weight", pair.a), (f"{module}.lora_B.weight", pair.b)


def module_of(tensor: str) -> str:
    """The module that has a tensor."""
    return tensor.removesuffix(".weight")


def _config(
    adapter: LoraAdapter, pairs: Sequence[LoraPair], form: WeightsMapping, spec: DecoderSpec, base: str | None
) -> dict[str, object]:
    """The settings of `peft`'s ``LoraConfig``. Rank and alpha are those of most modules; others stand in patterns."""
    settings = {module_of(pair.tensor): (pair.rank, _alpha(pair)) for pair in pairs}
    (rank, alpha), _ = Counter(settings.values()).most_common(1)[0]
    modules = [module_of(tensor) for tensor in targets_of(form, spec, alternatives=False)]
    config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: each for module, (each, _) in settings.items() if each != rank},
        "alpha_pattern": {module: each for module, (_, each) in settings.items() if each != alpha},
        "target_modules": _target_modules(settings.keys(), modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
    }
    if adapter.invocation_tokens:
        config["alora_invocation_tokens"] = list(adapter.invocation_tokens)
    return config


def _alpha(pair: LoraPair) -> int | float:
    """Alpha to the nine digits of a float32, in which GGUF files hold it."""
    alpha = float(f"{pair.scale * pair.rank:.9g}")
    return int(alpha) if alpha.is_integer() else alpha


def _target_modules(adapted: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The last name of modules all of which are adapted, the whole name of others."""
    chosen, wanted = set(adapted), set()
    everywhere: dict[str, set[str]] = {}
    for module in modules:
        everywhere.setdefault(module.rpartition(".")[2], set()).add(module)
    for name, members in everywhere.items():
        wanted |= {name} if members <= chosen else members & chosen
    return sorted(wanted)
