"""Merging into bases of every format and storage type, and into the language models of multimodal ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mistralrs.errors import LoadError
from mistralrs.loading.architecture_lookup import gguf_mapping_of
from mistralrs.loading.checkpoint_parts import CheckpointParts
from mistralrs.loading.convert import decoded
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.model_metadata import GgufMetadata
from mistralrs.loading.pipeline import LoadPlan, load
from mistralrs.models.parts import WeightKey
from mistralrs.ops.backend import resolve
from tests.adapters.merging import assert_equal, merged_logits, merging, tokens
from tests.adapters.peft_adapters import adapted, adapted_logits, quiet, write_adapter
from tests.architectures import VARIANTS, Folders, Variant, write_folder
from tests.ggml_writer import write_ggml_of
from tests.gguf_of import write_gguf
from tests.multimodal import multimodal_reference, write_multimodal
from tests.parity.running import Running
from tests.retyped import Base, write_base
from tests.tolerances import MERGED_LOGITS, REQUANTIZED_LOGITS

ALL_LAYERS = {"target_modules": "all-linear"}
TEXT_PART = {"target_modules": r".*language_model.*\.(q_proj|down_proj)"}
STEPS = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 100, "Q5_1": 1 / 14, "Q4_0": 1 / 6}
"""Of the largest weight of 32: half a step of each type, and what the search for the best scale gives up there."""


def test_a_merged_model_has_another_fingerprint(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By content and weight of the adapter, not by its name: KV of one never meets the other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = folders("llama")
    a, b = (write_adapter(tmp_path / name, folder, seed=seed) for seed, name in enumerate("ab"))
    same = shutil.copytree(a, tmp_path / "renamed")

    def name_of(*adapters: tuple[Path, float]) -> str | None:
        merge = merging(*adapters) if adapters else None
        plan = LoadPlan(max_seqs=1, max_batch_tokens=16, keeps_kv=True, merge=merge)
        return load(folder, resolve("cpu", threads=1, isa="torch").backend, plan).fingerprint

    assert name_of((a, 1.0)) == name_of((same, 1.0))
    assert len({name_of(), name_of((a, 1.0)), name_of((a, 0.5)), name_of((b, 1.0)), name_of((a, 1.0), (b, 1.0))}) == 5


def wide_model(tmp_path: Path, type_: str) -> tuple[Path, Path]:
    """A file whose k and down projections are stored in any type, and an adapter that acts on these."""
    base = Base.read(write_base(tmp_path, "llama"))
    settings = {"target_modules": ["k_proj", "down_proj"]}
    adapter = write_adapter(tmp_path / "adapter", tmp_path / "llama", settings=settings)
    changed = [name for name in base.tensors if name.endswith(("attn_k.weight", "ffn_down.weight"))]
    return base.write(tmp_path / "retyped.gguf", dict.fromkeys(changed, type_)), adapter


@pytest.mark.parametrize(("type_", "tolerance"), [("Q6_K", 0.03), ("Q5_K", 0.06), ("Q4_K", 0.12), ("Q3_K", 0.25)])
def test_k_types_are_quantized_again(type_: str, tolerance: float, tmp_path: Path) -> None:
    """The root of the mean squared error is within the ``tolerance`` of that of the weights."""
    file, path = wide_model(tmp_path, type_)
    backend = resolve("cpu", threads=1, isa="torch").backend
    with GgufFile.open(file) as checkpoint:
        architecture, form = gguf_mapping_of(checkpoint, None)
        spec = form.spec(GgufMetadata(checkpoint))
        merge = merging((path, 1.0))(architecture, spec)
        plain = CheckpointParts(checkpoint, form, spec, backend)
        merged = CheckpointParts(checkpoint, form, spec, backend, merge=merge)
        assert merged.placed_bytes == plain.placed_bytes
        for part in ("k_proj", "down_proj"):
            key = WeightKey(part, 1)
            wanted = torch.frombuffer(merge.merged(key, decoded(plain.matrix(key))), dtype=torch.float32)
            found = merged.matrix(key)
            assert (found.type.name, found.order) == (type_, None)
            values = torch.frombuffer(decoded(found), dtype=torch.float32)
            error = (values - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
            assert error <= tolerance


@pytest.mark.parametrize("type_", ["IQ4_NL", "IQ4_XS"])
def test_a_type_that_nothing_can_be_quantized_to_is_refused(type_: str, tmp_path: Path) -> None:
    file, path = wide_model(tmp_path, type_)
    message = f"is stored as {type_}, to which changed weights cannot be quantized"
    with pytest.raises(LoadError, match=message) as refusal:
        merged_logits(file, (path, 1.0))
    assert "without merging" in (refusal.value.hint or "")


@pytest.mark.parametrize(("type_", "tolerance"), [("F16", MERGED_LOGITS), ("Q8_0", REQUANTIZED_LOGITS)])
@pytest.mark.parametrize("name", ["llama", "gemma", "phi2", "qwen3"])
def test_gguf_bases(name: str, type_: str, tolerance: float, folders: Folders, tmp_path: Path) -> None:
    """Against peft on the weights as the file has them."""
    settings = {"target_modules": ["q_proj", "k_proj"], "use_dora": True}
    path = write_adapter(tmp_path / "adapter", folders(name), settings=settings)
    file = write_gguf(tmp_path / "base.gguf", folders(name), type_=type_)
    stored = None if type_ == "F16" else type_
    dequantized = write_folder(tmp_path / "dequantized", VARIANTS[name], dtype=torch.float32, decoded_as=stored)
    expected = adapted_logits(dequantized, {"a": path}, tokens())
    logits = merged_logits(file, (path, 1.0))
    assert (logits - expected).abs().max() <= tolerance * (expected.amax() - expected.amin())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma3", TEXT_PART),
        ("llava", {**TEXT_PART, "rank_pattern": {r".*language_model\.layers\.1\..*q_proj": 2}}),
        ("mistral3", {"target_modules": ["o_proj"], "modules_to_save": ["language_model.norm", "lm_head"]}),
        ("gemma3", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]}),
    ],
)
def test_adapters_of_multimodal_models(kind: str, settings: Mapping[str, Any], tmp_path: Path) -> None:
    folder = write_multimodal(tmp_path / kind, kind)
    path = write_adapter(tmp_path / "adapter", folder, settings=settings, loads=multimodal_reference)
    expected = adapted_logits(folder, {"a": path}, tokens(), loads=multimodal_reference)
    assert_equal(merged_logits(folder, (path, 1.0)), expected)


def test_older_names_of_multimodal_models(tmp_path: Path) -> None:
    folder = write_multimodal(tmp_path / "gemma3", "gemma3")
    path = write_adapter(tmp_path / "adapter", folder, settings=TEXT_PART, loads=multimodal_reference)
    expected = merged_logits(folder, (path, 1.0))
    weights = path / "adapter_model.safetensors"
    new, old = "base_model.model.model.language_model.", "base_model.model.language_model.model."
    save_file({name.replace(new, old): tensor for name, tensor in load_file(weights).items()}, weights)
    assert torch.equal(merged_logits(folder, (path, 1.0)), expected)


def test_tensors_of_the_vision_part_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As those of the model are, and said so. For text they change nothing."""
    folder = write_multimodal(tmp_path / "gemma3", "gemma3")
    settings = {"target_modules": ["q_proj"]}
    path = write_adapter(tmp_path / "adapter", folder, settings=settings, loads=multimodal_reference)
    assert any("vision" in name for name in load_file(path / "adapter_model.safetensors"))
    expected = adapted_logits(folder, {"a": path}, tokens(), loads=multimodal_reference)
    assert_equal(merged_logits(folder, (path, 1.0)), expected)
    assert "acts on images as well, which are not read: 2 of its tensors are left out" in caplog.text


@pytest.mark.parametrize("name", ["mistral", "mixtral", "phi3", "qwen3moe", "gemma2", "olmo2", "smollm3", "mistral3"])
def test_gguf_names_of_every_kind(name: str, folders: Folders, tmp_path: Path) -> None:
    """Architectures that go by another's name in GGUF, fused tensors, experts and routers."""
    path = write_adapter(tmp_path / "adapter", folders(name), settings=ALL_LAYERS)
    file = write_gguf(tmp_path / "base.gguf", folders(name))
    assert_equal(merged_logits(file, (path, 1.0)), merged_logits(folders(name), (path, 1.0)))


def test_a_ggml_base(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", Variant("llama", {"rms_norm_eps": 1e-5}))
    path = write_adapter(tmp_path / "adapter", folder, settings=ALL_LAYERS)
    file = write_ggml_of(tmp_path / "plain.bin", folder, type_="F16")
    assert_equal(merged_logits(file, (path, 1.0), gqa=2), adapted_logits(folder, {"a": path}, tokens()))


def test_merged_weights_are_quantized_in_situ(folders: Folders, tmp_path: Path) -> None:
    folder = folders("qwen3")
    path = write_adapter(tmp_path / "adapter", folder, settings=ALL_LAYERS)
    running = Running.load(folder, precision="f32", isa="torch", threads=1, isq="q8_0", merge=merging((path, 1.0)))
    merged = tmp_path / "merged"
    shutil.copytree(folder, merged)
    with quiet():
        adapted(folder, {"a": path}).merge_and_unload().save_pretrained(merged)
    expected = Running.load(merged, precision="f32", isa="torch", threads=1, isq="q8_0").whole(tokens())
    error = (running.whole(tokens()) - expected).abs().max()
    assert error <= REQUANTIZED_LOGITS / 5 * (expected.amax() - expected.amin())


@pytest.mark.parametrize("type_", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma", "phi2"])
def test_only_targets_are_touched(name: str, type_: str, folders: Folders, tmp_path: Path) -> None:
    """They keep their type, and are as near to the sum as that allows; all others keep their bytes."""
    folder = folders(name)
    path = write_adapter(tmp_path / "adapter", folder, settings={"target_modules": ["q_proj", "v_proj"]})
    file = write_gguf(tmp_path / "base.gguf", folder, type_=type_)
    backend = resolve("cpu", threads=1, isa="torch").backend
    with GgufFile.open(file) as checkpoint:
        architecture, form = gguf_mapping_of(checkpoint, None)
        spec = form.spec(GgufMetadata(checkpoint))
        merge = merging((path, 1.0))(architecture, spec)
        plain = CheckpointParts(checkpoint, form, spec, backend)
        merged = CheckpointParts(checkpoint, form, spec, backend, merge=merge)
        changed = 0
        for key in filter(plain.is_matrix, plain.weight_keys()):
            before, after = plain.matrix(key), merged.matrix(key)
            if key.part not in ("q_proj", "v_proj"):
                assert after == before
                continue
            changed += 1
            assert after.type == before.type
            wanted = torch.frombuffer(merge.merged(key, decoded(before)), dtype=torch.float32).view(before.rows, -1)
            found, old = (torch.frombuffer(decoded(m), dtype=torch.float32).view_as(wanted) for m in (after, before))
            error = (found - wanted).abs()
            assert not torch.equal(found, old)
            step = wanted.abs().view(wanted.shape[0], -1, 32).amax(dim=2).repeat_interleave(32, dim=1)
            assert (error <= STEPS[type_] * step).all()
    assert changed == 2 * len(spec.layers)
