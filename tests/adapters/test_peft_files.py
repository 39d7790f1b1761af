"""PEFT's folders: names, shapes and content, and the refusal of each kind of damage by name."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mistralrs.adapters.lora.lora import LoraAdapter, digest_of
from mistralrs.adapters.lora.module_names import ModuleNames, module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.errors import FormatError, LoadError
from mistralrs.models.parts import WeightKey
from tests.adapters.merging import spec_of
from tests.adapters.peft_adapters import write_adapter
from tests.architectures import VARIANTS, write_folder

Q = "base_model.model.model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"), VARIANTS["llama-biased-tied"])


@pytest.fixture(scope="module")
def names(llama: Path) -> ModuleNames:
    return module_names(*spec_of(llama))


@pytest.fixture(scope="module")
def original(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("original") / "style", llama, seed=5)


@pytest.fixture
def adapter(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "style")


def change(folder: Path, edit: Callable[[Tensors], Any] = lambda tensors: None, **fields: Any) -> Path:
    """Edits tensors and fields of an adapter."""
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | fields), encoding="utf-8")
    return folder


def test_what_is_read(adapter: Path, names: ModuleNames) -> None:
    found = read_peft(adapter, names)
    assert (found.name, found.source, found.rank) == ("style", str(adapter), 4)
    assert (found.acts_alone, found.merge_only, found.invocation_tokens) == (None, None, ())
    assert found.deltas.keys() == {WeightKey(part, layer) for part in ("q_proj", "v_proj") for layer in range(4)}
    delta = found.deltas[WeightKey("v_proj", 3)]
    assert (delta.scale, delta.a.rows, delta.a.columns, delta.b.rows, delta.b.columns) == (1.5, 4, 64, 32, 4)
    stored = load_file(adapter / "adapter_model.safetensors")
    kept = torch.frombuffer(bytearray(delta.b.data), dtype=torch.float32).view(32, 4)
    assert torch.equal(kept, stored["base_model.model.model.layers.3.self_attn.v_proj.lora_B.weight"])


def test_an_adapter_outlives_its_file(adapter: Path, names: ModuleNames) -> None:
    """Its digest is that of what is in memory, whatever becomes of the file."""
    found = read_peft(adapter, names)
    with (adapter / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(4096))
    assert digest_of(found) == found.digest


def test_names_that_hold_an_adapters_name(adapter: Path, names: ModuleNames) -> None:
    expected = read_peft(adapter, names)

    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)

    assert read_peft(change(adapter, rename), names).digest == expected.digest


def test_fused_rows_are_split(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "phi3", VARIANTS["phi3"])
    path = write_adapter(tmp_path / "adapter", folder, settings={"target_modules": ["qkv_proj", "gate_up_proj"]})
    found = read_peft(path, module_names(*spec_of(folder)))
    parts = [found.deltas[WeightKey(part, 1)] for part in ("q_proj", "k_proj", "v_proj")]
    assert [delta.b.rows for delta in parts] == [64, 32, 32]
    stored = load_file(path / "adapter_model.safetensors")
    whole = stored["base_model.model.model.layers.1.self_attn.qkv_proj.lora_B.weight"]
    assert b"".join(delta.b.data.tobytes() for delta in parts) == whole.numpy().tobytes()


@pytest.mark.parametrize(
    ("settings", "alone", "merge_only"),
    [
        ({"use_dora": True}, "use_dora", None),
        ({"use_dora": True, "target_modules": ["embed_tokens"]}, "use_dora", "use_dora"),
        ({"bias": "lora_only"}, "bias", "bias"),
        ({"modules_to_save": ["k_proj"]}, "modules_to_save", "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices", "trainable_token_indices"),
        ({"lora_bias": True}, None, None),
        ({"target_modules": ["embed_tokens", "q_proj"]}, None, None),
        ({"alora_invocation_tokens": [5, 6]}, None, None),
    ],
)
def test_how_an_adapter_acts(
    settings: Mapping[str, Any],
    alone: str | None,
    merge_only: str | None,
    llama: Path,
    names: ModuleNames,
    tmp_path: Path,
) -> None:
    found = read_peft(write_adapter(tmp_path / "adapter", llama, settings=settings), names)
    assert (found.acts_alone, found.merge_only) == (alone, merge_only)
    assert found.invocation_tokens == tuple(settings.get("alora_invocation_tokens", ()))


def test_the_digest_is_of_the_content(adapter: Path, names: ModuleNames, tmp_path: Path) -> None:
    first = read_peft(adapter, names)
    moved = read_peft(shutil.copytree(adapter, tmp_path / "other"), names, name="a name", source="a place")
    assert (moved.digest, len(moved.digest)) == (first.digest, 16)
    digests = {first.digest}
    changes: list[tuple[Callable[[Tensors], Any], dict[str, Any]]] = [
        (lambda tensors: tensors[f"{Q}.lora_A.weight"].view(-1)[7].add_(1e-3), {}),
        (lambda tensors: None, {"lora_alpha": 7}),
        (lambda tensors: None, {"use_rslora": True}),
        (lambda tensors: None, {"alora_invocation_tokens": [5]}),
        (lambda tensors: None, {"alora_invocation_tokens": [6]}),
        (lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}), {}),
    ]
    for index, (edit, fields) in enumerate(changes):
        digests.add(read_peft(change(shutil.copytree(adapter, tmp_path / str(index)), edit, **fields), names).digest)
    assert len(digests) == len(changes) + 1


DAMAGE: dict[str, tuple[Callable[[Tensors], Any], dict[str, Any], str]] = {
    "rank": (lambda tensors: None, {"r": 8}, r"lora_A.*is 4 x 64, expected 8 x 64 \(rank 8 from adapter_config"),
    "shape": (
        lambda tensors: tensors.update({f"{Q}.lora_B.weight": torch.zeros(48, 4)}),
        {},
        r"layers.0.self_attn.q_proj.lora_B.weight': is 48 x 4, expected 64 x 4",
    ),
    "transposed": (
        lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.zeros(64, 4)}),
        {},
        r"q_proj.lora_A.weight': is 64 x 4, expected 4 x 64",
    ),
    "one-dimensional": (
        lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.zeros(256)}),
        {},
        r"q_proj.lora_A.weight': is 256, expected 4 x 64",
    ),
    "nan": (
        lambda tensors: tensors[f"{Q}.lora_A.weight"].view(-1)[3].fill_(float("nan")),
        {},
        r"q_proj.lora_A.weight': has values that are not finite",
    ),
    "infinite": (
        lambda tensors: tensors.update({f"{Q}.lora_B.weight": torch.full((64, 4), -torch.inf).bfloat16()}),
        {},
        r"q_proj.lora_B.weight': has values that are not finite",
    ),
    "missing": (
        lambda tensors: tensors.pop(f"{Q}.lora_B.weight"),
        {},
        r"q_proj.lora_B': is missing: adapter_config.json says",
    ),
    "missing-module": (
        lambda tensors: [tensors.pop(f"{Q}.lora_{side}.weight") for side in "AB"],
        {},
        r"layers.0.self_attn.q_proj.lora_A': is missing",
    ),
    "module": (
        lambda tensors: tensors.update({Q.replace("q_proj", "c_attn") + ".lora_A.weight": torch.zeros(4, 64)}),
        {},
        r"is of a module 'model.layers.0.self_attn.c_attn', which the base does not have",
    ),
    "layer": (
        lambda tensors: tensors.update({Q.replace(".0.", ".9.") + ".lora_A.weight": torch.zeros(4, 64)}),
        {},
        r"is of a module 'model.layers.9.self_attn.q_proj', which the base does not have",
    ),
    "untargeted": (
        lambda tensors: tensors.update({Q.replace("q_proj", "k_proj") + ".lora_A.weight": torch.zeros(4, 64)}),
        {},
        r"k_proj.lora_A.weight': is of a module that target_modules and target_parameters do not name",
    ),
    "nothing": (lambda tensors: tensors.clear(), {"target_modules": ["c_attn"]}, "target_modules: acts on no module"),
    "magnitude": (
        lambda tensors: tensors.update({f"{Q}.lora_magnitude_vector": torch.ones(64)}),
        {},
        r"lora_magnitude_vector': is left over: by adapter_config.json there are only lora_A, lora_B",
    ),
    "no-magnitude": (lambda tensors: None, {"use_dora": True}, r"lora_magnitude_vector': is missing"),
    "no-bias": (lambda tensors: None, {"lora_bias": True}, r"lora_B.bias': is missing"),
    "two-adapters": (
        lambda tensors: tensors.update({f"{Q}.lora_A.other.weight": torch.zeros(4, 64)}),
        {},
        "the file has two adapters",
    ),
    "whole-weight": (
        lambda tensors: tensors.update({f"{Q}.weight": torch.zeros(64, 64)}),
        {},
        r"q_proj.weight': is left over: modules_to_save of adapter_config.json does not name it",
    ),
    "whole-bias": (
        lambda tensors: tensors.update({f"{Q}.base_layer.bias": torch.zeros(64)}),
        {},
        r"q_proj.base_layer.bias': is left over",
    ),
    "saved-missing": (lambda tensors: None, {"modules_to_save": ["k_proj"]}, r"k_proj.weight': is missing"),
    "rows-missing": (
        lambda tensors: None,
        {"trainable_token_indices": [3]},
        r"embed_tokens.token_adapter.trainable_tokens_delta': is missing",
    ),
    "rows-of-what": (
        lambda tensors: None,
        {"trainable_token_indices": {"wte": [3]}},
        r"trainable_token_indices: names 'wte', expected 'model.embed_tokens' or 'lm_head'",
    ),
    "rows-beyond": (
        lambda tensors: tensors.update(
            {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.zeros(1, 64)}
        ),
        {"trainable_token_indices": [10_000]},
        r"trainable_token_indices: has the token 10000, the base has 288",
    ),
    "invocation-beyond": (
        lambda tensors: None,
        {"alora_invocation_tokens": [10_000]},
        r"alora_invocation_tokens: has the token 10000, the base has 288",
    ),
    "vocabulary": (
        lambda tensors: tensors.update({"base_model.model.model.embed_tokens.weight": torch.zeros(290, 64)}),
        {},
        r"embed_tokens.weight': is 290 x 64, expected 288 x 64",
    ),
    "classifier": (
        lambda tensors: tensors.update({"base_model.model.score.weight": torch.zeros(2, 64)}),
        {"task_type": "SEQ_CLS"},
        r"is of a module 'score', which the base does not have",
    ),
    "strange": (
        lambda tensors: tensors.update({f"{Q}.lora_C.weight": torch.zeros(4, 4)}),
        {},
        r"lora_C.weight': is not one that a LoRA adapter has|which the base does not have",
    ),
    "type": (
        lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.zeros(4, 64, dtype=torch.float64)}),
        {},
        r"is stored as 'F64', which is not supported",
    ),
}


def test_reading_needs_neither_peft_nor_torch(adapter: Path, llama: Path) -> None:
    """They take seconds to import."""
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from mistralrs.adapters.lora.module_names import module_names\n"
        "from mistralrs.adapters.lora.peft_files import read_peft\n"
        f"architecture, spec = pickle.loads({pickle.dumps(spec_of(llama))!r})\n"
        f"assert read_peft(Path({str(adapter)!r}), module_names(architecture, spec)).rank == 4\n"
        "print([name for name in ('peft', 'torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case: str, adapter: Path, names: ModuleNames) -> None:
    edit, fields, message = DAMAGE[case]
    with pytest.raises(LoadError, match=message) as refusal:
        read_peft(change(adapter, edit, **fields), names)
    assert str(adapter) in refusal.value.message
    assert refusal.value.hint


def test_missing_files_are_named(adapter: Path, names: ModuleNames, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="absent is not a folder"):
        read_peft(tmp_path / "absent", names)
    weights = adapter / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    with pytest.raises(LoadError, match=r"has no adapter_model\.safetensors"):
        read_peft(adapter, names)
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(LoadError, match=r"adapter_model\.bin is a pickled PyTorch checkpoint"):
        read_peft(adapter, names)
    weights.write_bytes(data[:-1])
    with pytest.raises(FormatError, match=r"adapter_model\.safetensors: .*past the end of the file"):
        read_peft(adapter, names)
    weights.write_bytes(b"PK\x03\x04" + data)
    with pytest.raises(LoadError, match=r"adapter_model\.safetensors"):
        read_peft(adapter, names)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(LoadError, match=r"has no adapter_config\.json"):
        read_peft(adapter, names)


def test_a_config_of_the_base_beside_it_is_not_read(adapter: Path, names: ModuleNames) -> None:
    """Trainers leave one there, which says that the base was quantized."""
    text = json.dumps({"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes"}})
    (adapter / "config.json").write_text(text, encoding="utf-8")
    read_peft(adapter, names)


def test_mutations_end_in_an_error_or_an_adapter(adapter: Path, names: ModuleNames) -> None:
    """One thousand files with changed bytes, lost ends and edited settings."""
    random, refusals = Random(3), list[LoadError]()
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    data, text = weights.read_bytes(), config.read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    for _ in range(1000):
        file, content = random.choice([(weights, bytearray(data)), (config, bytearray(text))])
        for _ in range(random.choice((1, 1, 4))):
            content[random.randrange(header if file == weights else len(content))] = random.randrange(256)
        if random.random() < 0.2:
            del content[random.randrange(len(content)) :]
        file.write_bytes(content)
        try:
            assert isinstance(read_peft(adapter, names), LoraAdapter)
        except LoadError as error:
            refusals.append(error)
        weights.write_bytes(data)
        config.write_bytes(text)
    assert len(refusals) > 500
    assert all(str(adapter) in error.message and error.hint for error in refusals)
