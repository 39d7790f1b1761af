"""Models written with adapters merged into them: `transformers` and the loader compute with them what `peft` does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoHaConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mistralrs.adapters.tools.base_model import read_base_model
from mistralrs.adapters.tools.merge_adapters import merge_adapters
from mistralrs.errors import LoadError
from mistralrs_cli.app import main
from tests.adapters import llamacpp_lora
from tests.adapters.gguf_lora_of import write_gguf_lora_of
from tests.adapters.peft_adapters import adapted_logits, fill, quiet, write_adapter
from tests.architectures import VARIANTS, read_config, read_weights, reference, write_folder
from tests.gguf_of import write_gguf
from tests.multimodal import write_multimodal
from tests.parity import llamacpp
from tests.parity.llamacpp import digest
from tests.parity.running import Running, random_tokens
from tests.tiny import TOKENIZER_SIZE
from tests.tolerances import LLAMACPP_FLOAT, LLAMACPP_GELU, MERGED_LOGITS, REQUANTIZED_LOGITS

ALL_LAYERS = {"target_modules": "all-linear"}
STORED_IN_16_BITS = {"mixtral": 1e-3, "biases": 1e-3}
"""Tolerances where merged routers or biases are rounded to the 16 bits in which the folder has them."""
QUANTIZED_LOGITS = 2 * REQUANTIZED_LOGITS
"""Where the base's own matrices are rounded as well."""
TOKENS = random_tokens(TOKENIZER_SIZE, 24, seed=8)

Folder = Callable[[str], Path]
Adapter = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: write_folder(root / name, VARIANTS[name], dtype=torch.float32))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, folders: Folder) -> Adapter:
    root = tmp_path_factory.mktemp("adapters")
    return cache(lambda name: write_adapter(root / name, folders(name), seed=3, settings=ALL_LAYERS))


def computed(path: Path) -> torch.Tensor:
    return Running.load(path, precision="f32", isa="torch", threads=1, dtype="f32").whole(TOKENS)


def by_transformers(folder: Path) -> torch.Tensor:
    with quiet(), torch.inference_mode():
        logits: torch.Tensor = reference(folder)(torch.tensor([TOKENS])).logits[0]
    return logits


def assert_near(logits: torch.Tensor, expected: torch.Tensor, tolerance: float = MERGED_LOGITS) -> None:
    spread = (expected.amax() - expected.amin()).item()
    worst = (logits - expected).abs().max().item() / spread
    assert worst <= tolerance, f"off by {worst:.1e} of the range of the logits"


# Results


@pytest.mark.parametrize("name", ["llama", "gemma", "phi2", "phi3", "mixtral"])
def test_a_folder_is_what_peft_computes(name: str, folders: Folder, adapters: Adapter, tmp_path: Path) -> None:
    merge_adapters(folders(name), [(adapters(name), 1.0)], tmp_path / "merged")
    expected = adapted_logits(folders(name), {"a": adapters(name)}, TOKENS)
    assert_near(by_transformers(tmp_path / "merged"), expected, STORED_IN_16_BITS.get(name, MERGED_LOGITS))
    assert_near(computed(tmp_path / "merged"), expected, STORED_IN_16_BITS.get(name, MERGED_LOGITS))
    with pytest.raises(AssertionError, match="off by"):
        assert_near(computed(folders(name)), expected)


@pytest.mark.parametrize("name", ["llama", "gemma", "phi3", "mixtral"])
@pytest.mark.parametrize("base", ["folder", "GGUF"])
def test_a_gguf_file_is_what_peft_computes(
    base: str, name: str, folders: Folder, adapters: Adapter, tmp_path: Path
) -> None:
    source = folders(name) if base == "folder" else write_gguf(tmp_path / "base.gguf", folders(name), type_="F32")
    merge_adapters(source, [(adapters(name), 1.0)], tmp_path / "merged.gguf")
    expected = adapted_logits(folders(name), {"a": adapters(name)}, TOKENS)
    tolerance = STORED_IN_16_BITS.get(name, MERGED_LOGITS) if base == "folder" else MERGED_LOGITS
    assert_near(computed(tmp_path / "merged.gguf"), expected, tolerance)


def test_a_weighted_mix_of_formats(folders: Folder, adapters: Adapter, tmp_path: Path) -> None:
    folder = folders("llama")
    other = write_adapter(tmp_path / "other", folder, seed=9)
    file = write_gguf_lora_of(tmp_path / "other.gguf", other, folder)
    merge_adapters(folder, [(adapters("llama"), 0.5), (file, -1.5)], tmp_path / "merged")
    weights = {"a": 0.5, "b": -1.5}
    expected = adapted_logits(folder, {"a": adapters("llama"), "b": other}, TOKENS, weights=weights)
    assert_near(by_transformers(tmp_path / "merged"), expected)


SETTINGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "a head of its own": ("qwen3", {"target_modules": ["q_proj", "lm_head"]}),
    "an embedding of its own": ("gemma", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tokens": ("qwen3", {"trainable_token_indices": [5, 77]}),
    "biases": ("llama-biased-tied", {"bias": "all"}),
    "DoRA": ("llama", {"use_dora": True}),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_what_else_an_adapter_changes(case: str, folders: Folder, tmp_path: Path) -> None:
    name, settings = SETTINGS[case]
    adapter = write_adapter(tmp_path / "adapter", folders(name), seed=5, settings=settings)
    expected = adapted_logits(folders(name), {"a": adapter}, TOKENS)
    tolerance = STORED_IN_16_BITS.get(case, MERGED_LOGITS)
    base = write_gguf(tmp_path / "base.gguf", folders(name), type_="F32")
    merge_adapters(base, [(adapter, 1.0)], tmp_path / "merged.gguf")
    merge_adapters(folders(name), [(adapter, 1.0)], tmp_path / "merged")
    assert_near(computed(tmp_path / "merged.gguf"), expected, tolerance)
    assert_near(computed(tmp_path / "merged"), expected, tolerance)
    assert_near(by_transformers(tmp_path / "merged"), expected, tolerance)
    untied = "own" in case
    assert read_config(tmp_path / "merged").get("tie_word_embeddings", True) is not untied or name == "llama"


def test_norms_that_it_replaces(folders: Folder, tmp_path: Path) -> None:
    settings = {"modules_to_save": ["input_layernorm"]}
    adapter = write_adapter(tmp_path / "adapter", folders("gemma"), seed=5, settings=settings)
    merge_adapters(folders("gemma"), [(adapter, 1.0)], tmp_path / "merged")
    stored = load_file(adapter / "adapter_model.safetensors")
    found = read_weights(tmp_path / "merged")
    for layer in range(4):
        name = f"model.layers.{layer}.input_layernorm.weight"
        torch.testing.assert_close(found[name], stored[f"base_model.model.{name}"], rtol=1e-3, atol=1e-3)
        assert not torch.equal(found[name], read_weights(folders("gemma"))[name])


@pytest.mark.parametrize("name", llamacpp_lora.VARIANTS_WITH_GOLDEN)
def test_llama_cpp_reads_the_adapter_that_is_written(name: str, tmp_path: Path) -> None:
    """Golden logits of llama.cpp with a model and an adapter that are written anew; `make oracles` writes them."""
    golden = json.loads(llamacpp_lora.GOLDEN.read_text(encoding="utf-8"))[name]
    folder = write_folder(tmp_path / name, VARIANTS[name])
    model, adapter = llamacpp_lora.write_files(tmp_path, name, folder)
    found = {"model": digest(model), "adapter": digest(adapter)}
    assert found == {key: golden[key] for key in found}, "other weights; run: make oracles"
    tolerance = LLAMACPP_GELU if name in ("gemma", "phi2") else LLAMACPP_FLOAT
    for used in (adapter, tmp_path / "adapter"):
        out = tmp_path / f"{used.name}-merged.gguf"
        merge_adapters(model, [(used, 1.0)], out)
        running = Running.load(out, precision="f32", isa="torch", threads=1, dtype="f32")
        logits = running.whole(llamacpp.TOKENS)[llamacpp.LAST]
        assert_near(logits, torch.tensor(golden["logits"]), tolerance)


# Kinds that only peft reads


@pytest.mark.parametrize("kind", ["LoHa", "PiSSA"])
def test_peft_merges_what_nothing_here_reads(kind: str, folders: Folder, tmp_path: Path) -> None:
    folder, adapter = folders("llama"), tmp_path / "adapter"
    if kind == "LoHa":
        with quiet():
            model = get_peft_model(reference(folder), LoHaConfig(r=4, alpha=8, target_modules=["q_proj", "v_proj"]))
            fill(model, seed=4, deviation=0.3)
            model.save_pretrained(adapter)
    else:
        write_adapter(adapter, folder, seed=4, settings={"init_lora_weights": "pissa"})
    merge_adapters(folder, [(adapter, 1.0)], tmp_path / "merged")
    expected = adapted_logits(folder, {"a": adapter}, TOKENS)
    assert_near(computed(tmp_path / "merged"), expected)
    assert {path.name for path in folder.iterdir()} <= {path.name for path in (tmp_path / "merged").iterdir()}
    with pytest.raises(AssertionError, match="off by"):
        assert_near(computed(folder), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_peft_s_merge_has_the_type_of_the_base(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever the base's config calls it, as that of a model that others have converted may be wrong."""
    folder = write_folder(tmp_path / "base", VARIANTS["llama"], dtype=dtype)
    assert read_config(folder).get("dtype") not in ("float16", "bfloat16")
    adapter = write_adapter(tmp_path / "adapter", folder, settings={"init_lora_weights": "pissa"})
    merge_adapters(folder, [(adapter, 1.0)], tmp_path / "merged")
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {dtype}


def test_what_peft_is_not_asked_for(
    folders: Folder, adapters: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pissa = folders("llama"), tmp_path / "pissa"
    write_adapter(pissa, folder, settings={"init_lora_weights": "pissa"})
    base = write_gguf(tmp_path / "base.gguf", folder)
    plain = (adapters("llama"), 1.0)
    before = {path.name for path in tmp_path.iterdir()}

    def refused(said: str, source: Path, used: list[tuple[Path, float]], out: str) -> None:
        with pytest.raises(LoadError, match=said) as raised:
            merge_adapters(source, used, tmp_path / out)
        assert raised.value.hint
        assert {path.name for path in tmp_path.iterdir()} == before

    refused("with weight 1 and alone", folder, [(pissa, 0.5)], "out")
    refused("with weight 1 and alone", folder, [(pissa, 1.0), plain], "out")
    refused("into a folder of safetensors", folder, [(pissa, 1.0)], "out.gguf")
    refused("from safetensors", base, [(pissa, 1.0)], "out.gguf")
    refused("peft cannot merge it into", folders("gemma"), [(pissa, 1.0)], "out")
    monkeypatch.setitem(sys.modules, "peft", None)
    refused("peft is not installed", folder, [(pissa, 1.0)], "out")


# Bytes


def test_only_what_changes_is_written_anew(folders: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a quantized file: changed matrices get their type again, all else keeps its bytes, the metadata too."""
    adapter = write_adapter(tmp_path / "adapter", folders("llama"), seed=3)
    base = write_gguf(tmp_path / "base.gguf", folders("llama"), type_="Q8_0")
    merge_adapters(base, [(adapter, 1.0)], tmp_path / "merged.gguf")
    assert "8 merged matrices are quantized again, to Q8_0" in caplog.text
    before, after = (gguf.GGUFReader(path) for path in (base, tmp_path / "merged.gguf"))
    assert [tensor.name for tensor in before.tensors] == [tensor.name for tensor in after.tensors]
    changed = set()
    for one, two in zip(before.tensors, after.tensors, strict=True):
        assert (one.tensor_type, *one.shape) == (two.tensor_type, *two.shape)
        if not np.array_equal(one.data, two.data):
            changed.add(one.name)
    assert changed == {f"blk.{layer}.attn_{part}.weight" for layer in range(4) for part in ("q", "v")}
    for key, field in before.fields.items():
        if not key.startswith("GGUF."):
            assert field.contents() == after.fields[key].contents()
            assert field.types == after.fields[key].types
    expected = adapted_logits(folders("llama"), {"a": adapter}, TOKENS)
    assert_near(computed(tmp_path / "merged.gguf"), expected, QUANTIZED_LOGITS)


def test_a_folder_keeps_its_other_files(folders: Folder, adapters: Adapter, tmp_path: Path) -> None:
    merge_adapters(folders("llama"), [(adapters("llama"), 1.0)], tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in folders("llama").iterdir()}
    before, after = (load_file(each / "model.safetensors") for each in (folders("llama"), tmp_path / "merged"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert after[name].dtype == values.dtype
        assert torch.equal(after[name], values) == ("proj" not in name)


# Refusals


def write_small(path: Path, base: Path) -> Path:
    """An adapter of one matrix."""
    spec = read_base_model(base).spec
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = torch.ones(2, spec.hidden_size), torch.ones(spec.attention.q_size, 2)
    path.mkdir()
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["layers.0.self_attn.q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def test_what_cannot_be_merged(folders: Folder, adapters: Adapter, tmp_path: Path) -> None:
    folder, adapter = folders("llama"), adapters("llama")
    base = write_gguf(tmp_path / "base.gguf", folder)
    alora = write_gguf_lora_of(tmp_path / "alora.gguf", adapter, folder, tokens=[3])
    biased = write_adapter(tmp_path / "biased", folder, settings={"lora_bias": True})
    ggml = tmp_path / "model.bin"
    ggml.write_bytes(b"tjgg" + bytes(64))
    images = write_multimodal(tmp_path / "images", "gemma3")
    cases: list[tuple[Path, Path, str, str | None, str]] = [
        (folder, alora, "out", None, "alora_invocation_tokens"),
        (folder, biased, "out", None, "has no such bias"),
        (base, adapter, "out", None, "is a GGUF file, and stays one"),
        (base, adapter, "out.gguf", "q4_0", "whose types stay"),
        (ggml, adapter, "out.gguf", None, "is a legacy GGML file"),
        (images, write_small(tmp_path / "small", images), "out", None, "is a multimodal model"),
        (folders("gemma2"), adapters("phi2"), "out.gguf", None, "fc1', which the base does not have"),
    ]
    before = {path.name for path in tmp_path.iterdir()}
    for source, used, out, type_, said in cases:
        with pytest.raises(LoadError, match=said) as raised:
            merge_adapters(source, [(used, 1.0)], tmp_path / out, type=type_)
        assert raised.value.hint
        assert {path.name for path in tmp_path.iterdir()} == before


# The command


def test_the_command(folders: Folder, adapters: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    words = ["adapter", "merge", str(folders("llama")), f"{adapters('llama')}:0.5", "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{out}: ")
    expected = adapted_logits(folders("llama"), {"a": adapters("llama")}, TOKENS, weights={"a": 0.5})
    assert_near(computed(out), expected)
    assert main(words) == 2
    assert main([*words, "--force", "--type", "q8_0"]) == 0
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors if len(tensor.shape) > 1}
    assert types == {"Q8_0"}
    assert_near(computed(out), expected, QUANTIZED_LOGITS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapter:x", "--out", "a"], "'x' is no weight"),
        (["adapter:nan", "--out", "a"], "'nan' is no weight"),
        (["adapter", "--out", "there"], "there is there already"),
        (["adapter", "--out", "a", "--force"], "--force replaces files"),
        (["adapter", "--out", "a", "--type", "q8_0"], "--type is for GGUF files"),
        (["adapter", "--out", "a.gguf", "--type", "q9"], "'q9'"),
        (["--out", "a"], "missing"),
    ],
)
def test_refused_before_anything_is_read(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "adapter", "there"):
        (tmp_path / name).mkdir()
    assert main(["adapter", "merge", "model", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_path_with_a_colon_is_one(folders: Folder, adapters: Adapter, tmp_path: Path) -> None:
    path = tmp_path / "style:2"
    path.symlink_to(adapters("llama"))
    words = ["adapter", "merge", str(folders("llama")), str(path), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"
