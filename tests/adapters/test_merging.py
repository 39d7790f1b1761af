"""Merged adapters against peft: a sample of the fields of `LoraConfig` on every architecture; `make soak` tries all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters.merging import assert_equal, merged_logits, tokens
from tests.adapters.peft_adapters import adapted_logits, write_adapter
from tests.architectures import Folders, read_weights
from tests.parity.running import Running
from tests.tolerances import MERGED_LOGITS

NAMES = ("llama", "mistral", "mixtral", "gemma", "phi2", "qwen3")
OTHERS = ("llama-biased-tied", "phi3", "qwen3moe", "gemma2", "olmo2", "granite")
ALL_LAYERS = {"target_modules": "all-linear"}
EMBEDDED = {"target_modules": ["q_proj", "embed_tokens"]}
FIELDS: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "rank": {"r": 7, "lora_alpha": 3},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    "rank_pattern": {"rank_pattern": {r"1\.self_attn\.q_proj": 2, "q_proj": 6, "v_proj": 3}},
    "alpha_pattern": {"alpha_pattern": {"layers.2.self_attn.q_proj": 1, "q_proj": 16}},
    "all-linear": ALL_LAYERS,
    "regex": {"target_modules": r"model\.layers\.[12]\.self_attn\.(q|k)_proj"},
    "exclude_modules": {**ALL_LAYERS, "exclude_modules": ["k_proj", "layers.0.self_attn.q_proj"]},
    "exclude_regex": {**ALL_LAYERS, "exclude_modules": r".*layers\.3\.self_attn.*"},
    "layers_to_transform": {"layers_to_transform": [0, 3]},
    "layers_pattern": {"layers_to_transform": 2, "layers_pattern": "layers"},
    "bias-all": {"bias": "all"},
    "bias-lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["k_proj", "input_layernorm"]},
    "modules_to_save-head": {"modules_to_save": ["lm_head"]},
    "modules_to_save-embedding": {"modules_to_save": ["embed_tokens"]},
    "embedding": EMBEDDED,
    "head": {"target_modules": ["v_proj", "lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [5, 77, 100]},
    "trainable_token_indices-head": {"trainable_token_indices": {"lm_head": [7, 3]}},
    "trainable_token_indices-both": {"trainable_token_indices": {"lm_head": [7, 3], "embed_tokens": [9]}},
    "dora": {"use_dora": True},
    "dora-embedding": {**EMBEDDED, "use_dora": True, "rank_pattern": {"embed_tokens": 3}},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "initialiser": {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
}
CELLS = [(field, name) for field in FIELDS for name in NAMES]
SAMPLE = Random(11).sample(CELLS, 40)
EXPERTS = {
    "w1-w2-w3": {"target_modules": ["w1", "w2", "w3"]},
    "w2": {"target_modules": ["w2"], "use_rslora": True},
    "gate": {"target_modules": ["q_proj", "gate"]},
    "parameters": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "lora_alpha": 9},
    "gate_up": {"target_parameters": ["experts.gate_up_proj"], "rank_pattern": {"experts.gate_up_proj": 2}},
    "saved": {"modules_to_save": ["experts", "gate"]},
}

QWEN_EXPERTS = ("gate_proj", "up_proj", "down_proj")


def check(
    name: str, settings: Mapping[str, Any], folders: Folders, tmp_path: Path, *, isa: str | None = "torch"
) -> None:
    """The adapter changes the logits, and to what peft makes of them."""
    folder = folders(name)
    path = write_adapter(tmp_path / "adapter", folder, seed=3, settings=settings)
    expected = adapted_logits(folder, {"a": path}, tokens())
    if name == "phi2" and "lm_head" in str(settings.get("trainable_token_indices")):
        expected = expected + read_weights(folder)["lm_head.bias"]  # peft forgets it, but when it merges
    plain = Running.load(folder, precision="f32", isa=isa, threads=1).whole(tokens())
    assert (expected - plain).abs().max() > 100 * MERGED_LOGITS * (expected.amax() - expected.amin())
    assert_equal(merged_logits(folder, (path, 1.0), isa=isa), expected)


@pytest.mark.parametrize(("field", "name"), SAMPLE)
def test_merged_logits_are_those_of_peft(field: str, name: str, folders: Folders, tmp_path: Path) -> None:
    check(name, FIELDS[field], folders, tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name: str, folders: Folders, tmp_path: Path) -> None:
    check(name, ALL_LAYERS, folders, tmp_path)


@pytest.mark.parametrize("more", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["qkv_proj", "norm"]}])
def test_fused_modules(more: Mapping[str, Any], folders: Folders, tmp_path: Path) -> None:
    targets = {"target_modules": ["o_proj", "gate_up_proj"] + ([] if "modules_to_save" in more else ["qkv_proj"])}
    check("phi3", {**targets, **more}, folders, tmp_path)


@pytest.mark.parametrize("case", EXPERTS)
def test_experts(case: str, folders: Folders, tmp_path: Path) -> None:
    check("mixtral", EXPERTS[case], folders, tmp_path)


@pytest.mark.parametrize("case", ["all-linear", "fused", "saved"])
def test_experts_of_qwen3moe(case: str, folders: Folders, tmp_path: Path) -> None:
    settings = {
        "all-linear": {"target_modules": ["gate_proj", "up_proj", "down_proj", "gate"], "r": 3},
        "fused": {"target_parameters": ["mlp.experts.down_proj", "mlp.gate.weight"], "use_rslora": True},
        "saved": {"modules_to_save": ["mlp"]},
    }
    check("qwen3moe", settings[case], folders, tmp_path)


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_experts_one_by_one(name: str, folders: Folders, tmp_path: Path) -> None:
    """As they were before transformers 5, which peft converts when it loads them."""
    folder = folders(name)
    block, parts = ("block_sparse_moe", ("w1", "w3", "w2")) if name == "mixtral" else ("mlp", QWEN_EXPERTS)
    path = write_single_experts(tmp_path / "adapter", folder, block=block, parts=parts)
    expected = adapted_logits(folder, {"a": path}, tokens())
    assert_equal(merged_logits(folder, (path, 1.0)), expected)


def write_single_experts(path: Path, folder: Path, *, block: str, parts: Sequence[str]) -> Path:
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "peft_version": "0.17.0"}
    write_adapter(path, folder, settings={"r": 3, "lora_alpha": 5})
    (path / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": [*parts, "gate"]}), encoding="utf-8"
    )
    shapes = {parts[0]: (96, 64), parts[1]: (96, 64), parts[2]: (64, 96)}
    if block == "mlp":
        shapes = dict.fromkeys(parts, (64, 64))
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for layer in range(4):
        start = f"base_model.model.model.layers.{layer}.{block}."
        modules = {f"experts.{expert}.{part}": shapes[part] for expert in range(5) for part in parts}
        for module, (rows, columns) in (modules | {"gate": (5, 64)}).items():
            tensors[f"{start}{module}.lora_A.weight"] = torch.randn(3, columns, generator=generator) * 0.1
            tensors[f"{start}{module}.lora_B.weight"] = torch.randn(rows, 3, generator=generator) * 0.1
    save_file(tensors, path / "adapter_model.safetensors")
    return path


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
@pytest.mark.parametrize("version", ["0.18.1", "0.19.1"])
def test_old_experts_are_the_other_way_round(name: str, version: str, folders: Folders, tmp_path: Path) -> None:
    """Before peft 0.19.1, A read the rows of a fused parameter. Where it is square, only the version tells: Qwen's
    experts here are 64 x 64."""
    folder = folders(name)
    settings = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "target_modules": ["q_proj"]}
    path = write_adapter(tmp_path / "new", folder, settings=settings)
    old = tmp_path / "old"
    shutil.copytree(path, old)
    tensors = load_file(path / "adapter_model.safetensors")
    for key in [key for key in tensors if "experts" in key and "lora_A" in key]:
        if version == "0.19.1":
            break
        other = key.replace("lora_A", "lora_B")
        a, b = tensors[key], tensors[other]
        rank = a.shape[0] // 5
        by_expert = a.reshape(5, rank, -1), b.reshape(-1, rank, 5)
        tensors[key] = by_expert[1].permute(2, 1, 0).reshape(5 * rank, -1).contiguous()
        tensors[other] = by_expert[0].permute(2, 1, 0).reshape(-1, 5 * rank).contiguous()
    save_file(tensors, old / "adapter_model.safetensors")
    config = json.loads((old / "adapter_config.json").read_text(encoding="utf-8"))
    (old / "adapter_config.json").write_text(json.dumps(config | {"peft_version": version}), encoding="utf-8")
    assert torch.equal(merged_logits(folder, (old, 1.0)), merged_logits(folder, (path, 1.0)))


def test_a_mix_is_the_weighted_sum(folders: Folders, tmp_path: Path) -> None:
    folder = folders("qwen3")
    a = write_adapter(tmp_path / "a", folder, seed=1)
    b = write_adapter(tmp_path / "b", folder, seed=2, settings={"r": 2, "target_modules": ["q_proj", "down_proj"]})
    weights = {"a": 0.75, "b": -1.5}
    expected = adapted_logits(folder, {"a": a, "b": b}, tokens(), weights=weights)
    assert_equal(merged_logits(folder, (a, 0.75), (b, -1.5)), expected)


@pytest.mark.native
@pytest.mark.parametrize("name", NAMES)
def test_native_kernels_compute_with_merged_weights(name: str, folders: Folders, tmp_path: Path) -> None:
    check(name, {**ALL_LAYERS, "lora_bias": name not in ("mixtral",)}, folders, tmp_path, isa=None)
