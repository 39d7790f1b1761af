"""A safetensors model written as a quantized GGUF file: the model that ``--isq`` computes, read by us and by others."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mistralrs.errors import LoadError, UsageError
from mistralrs.loading import convert
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.quantize_model import quantize_model
from tests.architectures import VARIANTS, Folders, Variant, write_folder
from tests.ggml_writer import write_ggml
from tests.gguf_of import write_gguf
from tests.parity.running import Running, random_tokens
from tests.tiny import TOKENIZER_SIZE, TinyConfig, write_tiny

IN_GGUF = [name for name, variant in VARIANTS.items() if variant.in_gguf]
TOKENS = random_tokens(TOKENIZER_SIZE, 40, seed=11)
TEXTS = ("the cat is on the hat", "<|im_start|>user\nand  then<|im_end|>", "ä 漢 12\n\n")
ARCHITECTURES = (
    "llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "qwen2", "qwen3", "phi2", "phi3-long", "smollm3",
    "granite", "granitehybrid", "olmo2", "olmo3", "mistral3", "qwen3moe",
)  # fmt: skip
"""One variant of each."""

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def wide(variant: Variant) -> Variant:
    """A variant with rows that split in blocks of 256, except for attention outputs that are narrower."""
    settings: dict[str, Any] = {**variant.settings, "hidden_size": 256, "intermediate_size": 512}
    settings["num_hidden_layers"] = 2
    if "moe_intermediate_size" in settings:
        settings["moe_intermediate_size"] = 256
    if "shared_intermediate_size" in settings:
        settings["shared_intermediate_size"] = 512
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"][:2]
    factors = settings.get("rope_parameters", {}).get("short_factor")
    if factors:
        longer = {name: settings["rope_parameters"][name] * 4 for name in ("short_factor", "long_factor")}
        settings["rope_parameters"] = settings["rope_parameters"] | longer
    return replace(variant, settings=settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a variant, written once; ``wide NAME`` is its wide one."""

    @cache
    def folder(name: str) -> Path:
        variant = wide(VARIANTS[name.removeprefix("wide ")]) if name.startswith("wide ") else VARIANTS[name]
        return write_folder(tmp_path_factory.mktemp(name.replace(" ", "-")), variant)

    return folder


@pytest.fixture(scope="module")
def files(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The Q8_0 file of a variant, written once."""

    @cache
    def file(name: str) -> Path:
        return quantized(folders(name), tmp_path_factory.mktemp(f"{name}-Q8_0"))

    return file


def quantized(source: Path, folder: Path, type_: str = "q8_0") -> Path:
    quantize_model(source, folder / "out.gguf", type_)
    assert [file.name for file in folder.glob("*") if file.is_file()] == ["out.gguf"]
    return folder / "out.gguf"


def assert_same_model(path: Path, folder: Path, type_: str) -> None:
    """Bit for bit what ``--isq`` gives, with the same tokens for a text and the same template."""
    ours, expected = Running.load(path), Running.load(folder, isq=type_)
    assert torch.equal(ours.whole(TOKENS), expected.whole(TOKENS))
    for text in TEXTS:
        ids = expected.model.tokenizer.encode(text, special=True, bos=True)
        assert ours.model.tokenizer.encode(text, special=True, bos=True) == ids
    assert ours.model.tokenizer.eos_ids == expected.model.tokenizer.eos_ids
    assert ours.model.template is not None
    assert expected.model.template is not None
    assert ours.model.template.source == expected.model.template.source
    assert ours.model.max_model_len == expected.model.max_model_len


@pytest.mark.native
@pytest.mark.parametrize("name", IN_GGUF)
def test_it_is_the_model_that_isq_computes(name: str, folders: Folders, files: Folders) -> None:
    assert_same_model(files(name), folders(name), "q8_0")


@pytest.mark.native
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_in_blocks_of_256(name: str, folders: Folders, tmp_path: Path) -> None:
    folder = folders(f"wide {name}")
    path = quantized(folder, tmp_path, "q4_k")
    assert_same_model(path, folder, "q4_k")
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert {"Q4_K", "F32"} <= types <= {"Q4_K", "F32", "Q4_1"}


@pytest.mark.native
@pytest.mark.parametrize("type_", ["q6_k", "q5_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_every_type(type_: str, folders: Folders, tmp_path: Path) -> None:
    path = quantized(folders("wide llama"), tmp_path, type_)
    assert_same_model(path, folders("wide llama"), type_)
    reader = gguf.GGUFReader(path)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {type_.upper(), "F32"}
    file_type = reader.fields["general.file_type"].contents()
    assert gguf.LlamaFileType(file_type).name in (f"MOSTLY_{type_.upper()}", f"MOSTLY_{type_.upper()}_S")


# Other readers


LEFT_OUT = {
    "general.name",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.unknown_token_id",
    "granite.expert_shared_feed_forward_length",
}
"""Metadata in which the other writer differs: the model's name, unreachable tokens of a byte-level vocabulary, and the
width of a dense model's feed-forward under a second name."""
DEFAULTS = {
    "phi3.rope.scaling.attn_factor": 1.0,
    "olmo2.rope.scaling.yarn_attn_factor": 1 + 0.1 * math.log(4),
    "granite.expert_count": 0,
    "granite.expert_used_count": 0,
}
"""Metadata that is written only if it is not the default."""


def for_all(value: Any) -> Any:
    """One number where a list has it for every layer."""
    numbers = isinstance(value, list) and all(type(number) is int for number in value)
    return value[0] if numbers and len(set(value)) == 1 else value


@pytest.mark.parametrize("name", IN_GGUF)
def test_gguf_reads_what_the_converter_would_have_written(
    name: str, folders: Folders, files: Folders, tmp_path: Path
) -> None:
    """Against a writer that has keys and names from `gguf`: the same tensors with the same values but for what Q8_0
    rounds, and the same metadata."""
    theirs = gguf.GGUFReader(write_gguf(tmp_path / "theirs.gguf", folders(name), type_="F32"))
    ours = gguf.GGUFReader(files(name))
    found = {tensor.name: tensor for tensor in ours.tensors}
    assert found.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        other = found[tensor.name]
        assert other.shape.tolist() == tensor.shape.tolist(), tensor.name
        values = gguf.quants.dequantize(other.data, other.tensor_type)
        if other.tensor_type.name == "F32":
            np.testing.assert_allclose(values, tensor.data, rtol=1e-6, err_msg=tensor.name)
        else:
            assert np.square(values - tensor.data).sum() <= 1e-4 * np.square(tensor.data).sum(), tensor.name
    written = {key: each.contents() for key, each in ours.fields.items()}
    for key in theirs.fields.keys() - LEFT_OUT:
        if not key.startswith("GGUF."):
            assert written.get(key, DEFAULTS.get(key)) == pytest.approx(for_all(theirs.fields[key].contents())), key
    assert written["general.quantization_version"] == 2
    assert written["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert (written["general.name"], written["general.type"]) == (folders(name).name, "model")


def test_norms_and_routers_are_whole(files: Folders) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(files("mixtral")).tensors}
    types = {name.split(".")[-2]: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert {part: type_ for part, type_ in types.items() if type_ != "Q8_0"} == {
        "output_norm": "F32",
        "attn_norm": "F32",
        "ffn_norm": "F32",
        "ffn_gate_inp": "F32",
    }
    assert tensors["blk.0.ffn_down_exps.weight"].shape.tolist() == [96, 64, 5]


# Sources


def split(folder: Path, target: Path) -> Path:
    """The same model in two files and an index."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    where: dict[str, str] = {}
    for number, half in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in half}, target / file)
        where |= dict.fromkeys(half, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return target


def test_one_file_or_several_give_the_same(folders: Folders, files: Folders, tmp_path: Path) -> None:
    expected = files("llama").read_bytes()
    several = split(folders("llama"), tmp_path / "split")
    for source in (folders("llama") / "model.safetensors", several, several / "model.safetensors.index.json"):
        quantize_model(source, tmp_path / "out.gguf", "Q8_0", name=folders("llama").name)
        assert (tmp_path / "out.gguf").read_bytes() == expected


@pytest.mark.native
@pytest.mark.parametrize("name", ["mixtral", "phi3", "llama-biased-tied"])
def test_pieces_of_any_size_give_the_same(
    name: str, folders: Folders, files: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix is converted a few rows at a time, and its pages are released."""
    monkeypatch.setattr(convert, "_AT_ONCE", 500)
    assert quantized(folders(name), tmp_path).read_bytes() == files(name).read_bytes()


def test_the_name_and_a_model_without_a_template(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("llama"), tmp_path / "folder")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    quantize_model(folder, tmp_path / "out.gguf", "q8_0", name="A name")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert file.require("general.name", str) == "A name"
        assert "tokenizer.chat_template" not in file.metadata


def test_progress(folders: Folders, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    quantize_model(folders("llama"), tmp_path / "out.gguf", "q8_0", progress=lambda *step: reports.append(step))
    assert {what for what, _, _ in reports} == {"quantizing"}
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)
    assert reports[-1][1] == reports[-1][2]
    assert 0 <= (tmp_path / "out.gguf").stat().st_size - reports[-1][2] < 20_000


# Failures


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupted_it_leaves_nothing(folders: Folders, tmp_path: Path, error: type[BaseException]) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        assert [file.suffix for file in tmp_path.iterdir()] == [".partial"]
        if done > total // 2:
            raise error

    with pytest.raises(error):
        quantize_model(folders("llama"), tmp_path / "out.gguf", "q8_0", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_weight_that_cannot_be_quantized_leaves_nothing(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("llama"), tmp_path / "folder")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(LoadError, match=r"model.layers.3.mlp.down_proj.weight cannot be quantized to Q8_0"):
        quantize_model(folder, tmp_path / "out.gguf", "q8_0")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2-scaled", "cannot say this model's attention_scale"),
        ("qwen2-window", "cannot say this model's layers"),
        ("qwen3moe-plain", "cannot say this model's moe_normalize_weights"),
    ],
)
def test_specs_that_gguf_cannot_express_are_refused(name: str, reason: str, folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=reason) as refused:
        quantize_model(folders(name), tmp_path / "out.gguf", "q8_0")
    assert str(folders(name)) in refused.value.message
    assert "--isq" in (refused.value.hint or "")


def change_json(path: Path, changes: Mapping[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_refused(folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"

    def refused(source: Path, reason: str, type_: str = "q8_0") -> None:
        with pytest.raises((LoadError, UsageError), match=reason) as error:
            quantize_model(source, out, type_)
        assert error.value.hint
        assert not out.exists()

    tiny = write_tiny(tmp_path / "tiny.gguf", TinyConfig(tied=False))
    legacy = write_ggml(tmp_path / "tiny.bin", tiny, version="ggjt version 3", type_="F16")
    refused(tiny.path, r"tiny.gguf is a GGUF file already")
    refused(legacy.path, r"tiny.bin is a GGML file already")
    refused(tmp_path / "absent.gguf", "absent.gguf cannot be read")
    refused(folders("llama"), "weights cannot be quantized to 'q9_k'", "q9_k")
    silent = shutil.copytree(folders("llama"), tmp_path / "silent")
    (silent / "tokenizer.json").unlink()
    refused(silent, "silent has no tokenizer.json and no tokenizer.model")
    small = shutil.copytree(folders("llama"), tmp_path / "small")
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["thein"] = TOKENIZER_SIZE
    (small / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(small, f"the tokenizer has {TOKENIZER_SIZE + 1} tokens, the model knows {TOKENIZER_SIZE}")
    strange = shutil.copytree(folders("llama"), tmp_path / "strange")
    change_json(strange / "config.json", {"model_type": "mamba"})
    refused(strange, "holds the architecture 'mamba', which is not supported yet")


def test_long_factors_must_be_there(folders: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(folders("phi3-long"), tmp_path / "long")
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    change_json(folder / "config.json", {"rope_parameters": rope | {"long_factor": "none"}})
    with pytest.raises(LoadError, match="longrope without a list long_factor"):
        quantize_model(folder, tmp_path / "out.gguf", "q8_0")
