"""GGUF LoRA files: those that `gguf` wrote of adapters by `peft` are read as these adapters, and written back."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mistralrs.adapters.lora.gguf_lora import float_values, read_gguf_lora
from mistralrs.adapters.lora.gguf_lora_writer import write_gguf_lora
from mistralrs.adapters.lora.lora import LoraAdapter
from mistralrs.adapters.lora.peft_writer import write_peft
from mistralrs.adapters.tools.base_model import BaseModel, read_base_model
from mistralrs.errors import FormatError, LoadError
from mistralrs.loading.pipeline import LoadPlan, load
from mistralrs.models.parts import WeightKey
from mistralrs.ops.reference_backend import ReferenceBackend
from tests.adapters.gguf_lora_of import Pairs, peft_pairs, write_gguf_lora_of
from tests.adapters.peft_adapters import adapted_logits, write_adapter
from tests.architectures import VARIANTS, read_weights, write_folder
from tests.gguf_of import write_gguf
from tests.loading.mutations import Base, mutate

ARCHITECTURES = (
    "llama", "mistral-nemo", "mixtral", "gemma", "gemma3", "qwen2", "qwen3", "qwen3moe", "phi2", "phi3", "smollm3",
    "granite", "olmo2", "mistral3",
)  # fmt: skip
PARTS = {
    "q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "o_proj", "dense": "o_proj",
    "gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj", "fc1": "up_proj", "fc2": "down_proj",
    "w1": "expert_gate_proj", "w2": "expert_down_proj", "w3": "expert_up_proj", "gate": "router",
    "embed_tokens": "embed_tokens", "lm_head": "lm_head",
}  # fmt: skip
"""The decoder's part by the last name of a module."""
FUSED = {
    "qkv_proj": {"q_proj": slice(0, 64), "k_proj": slice(64, 96), "v_proj": slice(96, 128)},
    "gate_up_proj": {"gate_proj": slice(0, 96), "up_proj": slice(96, 192)},
}
"""Phi-3's, with the rows of a tiny model."""
LINEARS = (*(name for name in PARTS if name != "gate"), *FUSED)
RANK, ALPHA = 4, 6

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: write_folder(root / name, VARIANTS[name], dtype=torch.float32))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, folders: Folder) -> Folder:
    root = tmp_path_factory.mktemp("adapters")

    def adapter(name: str) -> Path:
        folder = folders(name)
        if name in ("mixtral", "qwen3moe"):
            return write_by_hand(root / name, folder)
        targets = [*LINEARS] if "lm_head.weight" in read_weights(folder) else sorted({*LINEARS} - {"lm_head"})
        return write_adapter(root / name, folder, settings={"r": RANK, "lora_alpha": ALPHA, "target_modules": targets})

    return cache(adapter)


def write_by_hand(path: Path, folder: Path) -> Path:
    """An adapter of every matrix, with names for each expert, which `peft` writes no more."""
    path.mkdir()
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, weight in read_weights(folder).items():
        if weight.dim() != 2 or "layers" not in name:
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, weight.shape[1], generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], RANK, generator=generator)
    save_file(tensors, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}
    (path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def read(path: Path, folder: Path) -> LoraAdapter:
    base = read_base_model(folder)
    return read_gguf_lora(path, name="test", architecture=base.architecture, spec=base.spec)


def by_key(pairs: Pairs) -> dict[WeightKey, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by part; those of the embedding as the decoder has them."""
    found = {}
    for module, (a, b) in pairs.items():
        match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(?:.*experts\.(\d+)\.|.*\.)?(\w+)", module)
        assert match is not None
        layer, expert = (None if group is None else int(group) for group in match.groups()[:2])
        last = match[3]
        if last in FUSED:
            found |= {WeightKey(part, layer): (a, b[rows]) for part, rows in FUSED[last].items()}
        else:
            part = f"expert_{last}" if expert is not None and last not in ("w1", "w2", "w3") else PARTS[last]
            found[WeightKey(part, layer, expert)] = (a.T if last == "embed_tokens" else a, b)
    return found


def assert_same(adapter: LoraAdapter, pairs: Pairs, *, scale: float = ALPHA / RANK) -> None:
    expected = by_key(pairs)
    assert adapter.deltas.keys() == expected.keys()
    for key, delta in adapter.deltas.items():
        a, b = expected[key]
        assert torch.equal(float_values(delta.a), a), key
        assert torch.equal(float_values(delta.b), b), key
        assert delta.scale == pytest.approx(scale, rel=1e-6)


def dense(adapter: LoraAdapter) -> dict[WeightKey, torch.Tensor]:
    """scale * b a of each part."""
    return {
        key: (
            float_values(delta.a).double() @ float_values(delta.b).double().T
            if key.part == "embed_tokens"
            else float_values(delta.b).double() @ float_values(delta.a).double()
        )
        * delta.scale
        for key, delta in adapter.deltas.items()
    }


# Reading


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_is_the_adapter_that_it_was_made_of(
    name: str, folders: Folder, adapters: Folder, tmp_path: Path
) -> None:
    path = write_gguf_lora_of(tmp_path / "lora.gguf", adapters(name), folders(name))
    adapter = read(path, folders(name))
    assert_same(adapter, peft_pairs(adapters(name)))
    assert adapter.rank == RANK
    assert adapter.invocation_tokens == ()


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
def test_the_model_may_be_a_gguf_file(name: str, folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    path = write_gguf_lora_of(tmp_path / "lora.gguf", adapters(name), folders(name))
    model = write_gguf(tmp_path / "model.gguf", folders(name))
    assert_same(read(path, model), peft_pairs(adapters(name)))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (0.0, 1.0), (8.0, 2.0), (-6.0, -1.5)])
def test_alpha(alpha: float | None, scale: float, folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    path = write_gguf_lora_of(tmp_path / "lora.gguf", adapters("llama"), folders("llama"), alpha=alpha)
    assert {delta.scale for delta in read(path, folders("llama")).deltas.values()} == {scale}


@pytest.mark.parametrize("type_", ["F16", "BF16"])
def test_floats_stay_as_they_are_stored(type_: str, folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    path = write_gguf_lora_of(tmp_path / "lora.gguf", adapters("llama"), folders("llama"), type_=type_)
    adapter = read(path, folders("llama"))
    assert {matrix.type.name for delta in adapter.deltas.values() for matrix in (delta.a, delta.b)} == {type_}
    expected = {
        module: tuple(each.to(torch.float16 if type_ == "F16" else torch.bfloat16) for each in pair)
        for module, pair in peft_pairs(adapters("llama")).items()
    }
    assert_same(adapter, expected)  # type: ignore[arg-type]


def test_quantized_matrices_are_decoded(folders: Folder, tmp_path: Path) -> None:
    folder = folders("llama")
    settings = {"r": 32, "target_modules": ["q_proj", "down_proj"]}
    peft = write_adapter(tmp_path / "peft", folder, settings=settings)
    adapter = read(write_gguf_lora_of(tmp_path / "lora.gguf", peft, folder, type_="Q8_0"), folder)

    def decoded(values: torch.Tensor) -> torch.Tensor:
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(values.numpy(), q8_0), q8_0))

    expected = {module: (decoded(a), decoded(b)) for module, (a, b) in peft_pairs(peft).items()}
    assert_same(adapter, expected, scale=6 / 32)


def test_older_names_of_the_model(folders: Folder, tmp_path: Path) -> None:
    """Phi-2's q, k and v under one name, as files of old have them."""
    folder = folders("phi2")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(RANK, 64, generator=generator), torch.randn(192, RANK, generator=generator)
    tensors = {"blk.1.attn_qkv.weight.lora_a": a, "blk.1.attn_qkv.weight.lora_b": b}
    adapter = read(write_tensors(tmp_path / "lora.gguf", "phi2", tensors), folder)
    assert sorted(key.part for key in adapter.deltas) == ["k_proj", "q_proj", "v_proj"]
    for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
        delta = adapter.deltas[WeightKey(part, 1)]
        assert torch.equal(float_values(delta.a), a)
        assert torch.equal(float_values(delta.b), b[64 * i : 64 * (i + 1)])


def test_tokens_that_invoke_it(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    plain = write_gguf_lora_of(tmp_path / "plain.gguf", adapters("llama"), folders("llama"))
    path = write_gguf_lora_of(tmp_path / "lora.gguf", adapters("llama"), folders("llama"), tokens=[7, 3, 3])
    adapter = read(path, folders("llama"))
    assert adapter.invocation_tokens == (7, 3, 3)
    assert adapter.digest != read(plain, folders("llama")).digest
    assert adapter.digest == read(path, folders("llama")).digest
    assert len(adapter.digest) == 16


# Writing


def test_the_tokens_that_invoke_it_are_written(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    """As llama.cpp wants them: as an array of uint32."""
    folder, base = folders("llama"), read_base_model(folders("llama"))
    adapter = read(write_gguf_lora_of(tmp_path / "one.gguf", adapters("llama"), folder, tokens=[7, 3]), folder)
    write_gguf_lora(adapter, tmp_path / "two.gguf", architecture=base.architecture, spec=base.spec, base="owner/base")
    write_peft(adapter, tmp_path / "peft", architecture=base.architecture, spec=base.spec)
    fields = gguf.GGUFReader(tmp_path / "two.gguf").fields
    field = fields["adapter.alora.invocation_tokens"]
    assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32]
    assert field.contents() == [7, 3]
    assert fields["general.base_model.0.name"].contents() == "owner/base"
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["alora_invocation_tokens"] == [7, 3]
    assert read(tmp_path / "two.gguf", folder).digest == adapter.digest


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_there_and_back(name: str, folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    folder, base = folders(name), read_base_model(folders(name))
    adapter = read(write_gguf_lora_of(tmp_path / "one.gguf", adapters(name), folder), folder)
    write_gguf_lora(adapter, tmp_path / "two.gguf", architecture=base.architecture, spec=base.spec)
    one, two = (tensors_of(tmp_path / file) for file in ("one.gguf", "two.gguf"))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert_same(read(tmp_path / "two.gguf", folder), peft_pairs(adapters(name)))
    write_peft(adapter, tmp_path / "peft", architecture=base.architecture, spec=base.spec)
    assert {key: [*map(id_of, pair)] for key, pair in peft_pairs(tmp_path / "peft").items()} == {
        key: [*map(id_of, pair)] for key, pair in peft_pairs(adapters(name)).items()
    }


@pytest.mark.parametrize("name", ["llama", "gemma", "phi3"])
def test_peft_computes_the_same_with_what_came_back(
    name: str, folders: Folder, adapters: Folder, tmp_path: Path
) -> None:
    folder, base = folders(name), read_base_model(folders(name))
    adapter = read(write_gguf_lora_of(tmp_path / "lora.gguf", adapters(name), folder), folder)
    some = {key: delta for key, delta in adapter.deltas.items() if key.layer != 2}
    write_peft(adapter, tmp_path / "all", architecture=base.architecture, spec=base.spec)
    write_peft(replace(adapter, deltas=some), tmp_path / "some", architecture=base.architecture, spec=base.spec)
    tokens = [5, 9, 17, 30, 2]
    expected, found, fewer = (
        adapted_logits(folder, {"a": path}, tokens) for path in (adapters(name), tmp_path / "all", tmp_path / "some")
    )
    assert torch.equal(found, expected)
    assert not torch.equal(fewer, expected)


def test_scales_of_their_own_are_multiplied_into_b(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    """As with rslora where ranks differ: a file has one alpha."""
    folder, base = folders("llama"), read_base_model(folders("llama"))
    adapter = read(write_gguf_lora_of(tmp_path / "one.gguf", adapters("llama"), folder, type_="F16"), folder)
    deltas = {
        key: replace(delta, scale=delta.scale * (key.layer or 0)) if key.part == "q_proj" else delta
        for key, delta in adapter.deltas.items()
    }
    changed = replace(adapter, deltas=deltas)
    write_gguf_lora(changed, tmp_path / "two.gguf", architecture=base.architecture, spec=base.spec)
    write_peft(changed, tmp_path / "peft", architecture=base.architecture, spec=base.spec)
    found = read(tmp_path / "two.gguf", folder)
    assert {delta.a.type.name for delta in found.deltas.values()} == {"F16"}
    assert {found.deltas[WeightKey("q_proj", layer)].b.type.name for layer in (0, 2, 3)} == {"F32"}
    assert found.deltas[WeightKey("k_proj", 2)].b.type.name == "F16"
    for key, values in dense(found).items():
        torch.testing.assert_close(values, dense(changed)[key], rtol=1e-6, atol=1e-6)
    pattern = json.loads((tmp_path / "peft" / "adapter_config.json").read_text(encoding="utf-8"))["alpha_pattern"]
    assert pattern == {f"model.layers.{layer}.self_attn.q_proj": 6 * layer for layer in (0, 2, 3)}


def test_parts_that_share_a_tensor_keep_their_own_a(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    """Phi-3's q, k and v are one tensor; parts with another A, another scale or nothing at all still fit into it."""
    folder, base = folders("phi3"), read_base_model(folders("phi3"))
    adapter = read(write_gguf_lora_of(tmp_path / "one.gguf", adapters("phi3"), folder), folder)
    deltas = dict(adapter.deltas)
    for layer in range(4):
        del deltas[WeightKey("v_proj", layer)]
        q, k = deltas[WeightKey("q_proj", layer)], WeightKey("k_proj", layer)
        deltas[k] = replace(deltas[k], a=deltas[WeightKey("up_proj", layer)].a, scale=2 * q.scale)
    changed = replace(adapter, deltas=deltas)
    write_gguf_lora(changed, tmp_path / "two.gguf", architecture=base.architecture, spec=base.spec)
    found = dense(read(tmp_path / "two.gguf", folder))
    for key, values in dense(changed).items():
        torch.testing.assert_close(found[key], values, rtol=1e-6, atol=1e-6)
    assert not found[WeightKey("v_proj", 0)].any()


def test_experts_of_other_ranks(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    folder, base = folders("mixtral"), read_base_model(folders("mixtral"))
    adapter = read(write_gguf_lora_of(tmp_path / "one.gguf", adapters("mixtral"), folder), folder)
    deltas = dict(adapter.deltas)
    del deltas[WeightKey("expert_up_proj", 0, 1)]
    deltas[WeightKey("expert_up_proj", 0, 2)] = replace(deltas[WeightKey("expert_up_proj", 0, 2)], scale=0.25)
    changed = replace(adapter, deltas=deltas)
    write_gguf_lora(changed, tmp_path / "two.gguf", architecture=base.architecture, spec=base.spec)
    found = dense(read(tmp_path / "two.gguf", folder))
    for key, values in dense(changed).items():
        torch.testing.assert_close(found[key], values, rtol=1e-6, atol=1e-6)
    assert not found[WeightKey("expert_up_proj", 0, 1)].any()


def test_what_a_file_cannot_hold_is_refused(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    folder, base = folders("llama"), read_base_model(folders("llama"))
    adapter = read(write_gguf_lora_of(tmp_path / "one.gguf", adapters("llama"), folder), folder)
    key, delta = next(iter(adapter.deltas.items()))
    for field, word in (("magnitude", "DoRA"), ("bias", "biases")):
        changed = replace(adapter, deltas={key: replace(delta, **{field: array("f", [1.0] * delta.b.rows)})})
        for write in (write_gguf_lora, write_peft):
            with pytest.raises(LoadError, match=word):
                write(changed, tmp_path / "two", architecture=base.architecture, spec=base.spec)
    assert [path.name for path in tmp_path.iterdir()] == ["one.gguf"]


# Refusals


def test_a_model_is_no_adapter_and_an_adapter_no_model(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    folder = folders("llama")
    model = write_gguf(tmp_path / "model.gguf", folder)
    with pytest.raises(LoadError, match="is a model, not a LoRA adapter"):
        read(model, folder)
    path = write_gguf_lora_of(tmp_path / "lora.gguf", adapters("llama"), folder)
    with pytest.raises(LoadError, match="is a LoRA adapter, not a model") as raised:
        load(path, ReferenceBackend(), LoadPlan(max_seqs=1, max_batch_tokens=8))
    assert raised.value.hint is not None
    assert "adapter inspect" in raised.value.hint


@pytest.mark.parametrize(
    ("metadata", "place", "reason"),
    [
        ({"general.architecture": "gemma"}, "general.architecture", "'gemma', but the base model is 'llama'"),
        ({"general.type": "mmproj"}, "general.type", "'mmproj', expected 'adapter'"),
        ({"adapter.type": "control_vector"}, "adapter.type", "'control_vector', expected 'lora'"),
        ({"adapter.lora.alpha": "six"}, "adapter.lora.alpha", "type str, expected float"),
        ({"adapter.alora.invocation_tokens": "x"}, "adapter.alora.invocation_tokens", "type str, expected list"),
    ],
)
def test_wrong_metadata(
    metadata: dict[str, str], place: str, reason: str, folders: Folder, adapters: Folder, tmp_path: Path
) -> None:
    alpha = None if "adapter.lora.alpha" in metadata else 6.0
    path = write_gguf_lora_of(
        tmp_path / "lora.gguf", adapters("llama"), folders("llama"), alpha=alpha, metadata=metadata
    )
    with pytest.raises(FormatError) as raised:
        read(path, folders("llama"))
    assert str(path) in raised.value.message
    assert place in raised.value.place
    assert reason in raised.value.reason


A, B = torch.ones(4, 64), torch.ones(64, 4)
GOOD = {"blk.0.attn_q.weight.lora_a": A, "blk.0.attn_q.weight.lora_b": B}
BAD: dict[str, tuple[dict[str, torch.Tensor], str, str]] = {
    "other width": ({**GOOD, "blk.0.attn_q.weight.lora_a": torch.ones(4, 128)}, "attn_q.weight.lora_a", "4 x 64"),
    "other rows": ({**GOOD, "blk.0.attn_q.weight.lora_b": torch.ones(32, 4)}, "attn_q.weight.lora_b", "64 x 4"),
    "other rank": ({**GOOD, "blk.0.attn_q.weight.lora_b": torch.ones(64, 8)}, "attn_q.weight.lora_b", "64 x 4"),
    "one dimension": ({**GOOD, "blk.0.attn_q.weight.lora_a": torch.ones(64)}, "attn_q.weight.lora_a", "rank x 64"),
    "swapped": ({"blk.0.attn_q.weight.lora_a": B, "blk.0.attn_q.weight.lora_b": A}, "lora_a", "expected 64 x 64"),
    "other layer": ({"blk.4.attn_q.weight.lora_a": A, "blk.4.attn_q.weight.lora_b": B}, "blk.4", "does not have"),
    "no target": ({"blk.0.ssm_in.weight.lora_a": A, "blk.0.ssm_in.weight.lora_b": B}, "ssm_in", "does not have"),
    "experts": ({"blk.0.ffn_up_exps.weight.lora_a": A, "blk.0.ffn_up_exps.weight.lora_b": B}, "exps", "not have"),
    "no partner": ({"blk.0.attn_q.weight.lora_a": A}, "attn_q.weight.lora_b", "is missing"),
    "no suffix": ({**GOOD, "blk.0.attn_q.weight": B}, "'blk.0.attn_q.weight'", "ends neither in .lora_a"),
    "a norm": ({**GOOD, "blk.0.attn_norm.weight": torch.ones(64)}, "attn_norm", "replaces a norm"),
    "NaN": ({**GOOD, "blk.0.attn_q.weight.lora_b": B * torch.nan}, "attn_q.weight.lora_b", "not finite"),
    "infinite": ({**GOOD, "blk.0.attn_q.weight.lora_a": A * torch.inf}, "attn_q.weight.lora_a", "not finite"),
    "zeros": ({**GOOD, "blk.0.attn_k.weight.lora_a": A * 0, "blk.0.attn_k.weight.lora_b": B[:32] * 0}, "k", "zeros"),
    "embedding": ({"token_embd.weight.lora_a": A, "token_embd.weight.lora_b": B}, "token_embd", "expected"),
    "nothing": ({}, "tensors", "there are none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_wrong_tensors(case: str, folders: Folder, tmp_path: Path) -> None:
    tensors, place, reason = BAD[case]
    path = write_tensors(tmp_path / "lora.gguf", "llama", tensors)
    with pytest.raises(LoadError) as raised:
        read(path, folders("llama"))
    assert str(path) in raised.value.message
    assert place in raised.value.message
    assert reason in raised.value.message
    assert raised.value.hint


def test_a_head_that_is_the_embedding_has_no_addition(folders: Folder, tmp_path: Path) -> None:
    rows = read_base_model(folders("qwen3")).spec.vocab_size
    tensors = {"output.weight.lora_a": A, "output.weight.lora_b": torch.ones(rows, 4)}
    with pytest.raises(FormatError, match="its head is the embedding"):
        read(write_tensors(tmp_path / "lora.gguf", "qwen3", tensors), folders("qwen3"))


def test_the_same_part_twice(folders: Folder, tmp_path: Path) -> None:
    tensors = {
        f"blk.0.attn_qkv.weight.{suffix}": values for suffix, values in (("lora_a", A), ("lora_b", B.repeat(3, 1)))
    }
    with pytest.raises(FormatError, match="another addition to"):
        read(write_tensors(tmp_path / "lora.gguf", "phi2", {**tensors, **GOOD}), folders("phi2"))


def test_tokens_that_the_model_does_not_have(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    path = write_gguf_lora_of(tmp_path / "lora.gguf", adapters("llama"), folders("llama"), tokens=[3, 10**6])
    with pytest.raises(FormatError, match="has the token 1000000"):
        read(path, folders("llama"))


def test_damaged_files_are_refused_by_name(folders: Folder, adapters: Folder, tmp_path: Path) -> None:
    """Of 200 damaged files each is either refused with an error that names it, or read as an adapter that fits."""
    folder, path = folders("llama"), tmp_path / "lora.gguf"
    base = read_base_model(folder)
    original = Base.read(write_gguf_lora_of(tmp_path / "sound.gguf", adapters("llama"), folder, tokens=[3, 7]))
    refused = 0
    for seed in range(200):
        mutate(original, Random(seed)).write(path)
        outcome = read_or_error(path, base)
        if isinstance(outcome, LoadError):
            assert str(path) in outcome.message, seed
            assert outcome.hint, seed
            refused += 1
            continue
        assert outcome.deltas
        for delta in outcome.deltas.values():
            assert torch.isfinite(float_values(delta.a)).all()
            assert torch.isfinite(float_values(delta.b)).all()
    assert 100 < refused < 200


# Helpers


def read_or_error(path: Path, base: BaseModel) -> LoraAdapter | LoadError:
    try:
        return read_gguf_lora(path, name="test", architecture=base.architecture, spec=base.spec)
    except LoadError as error:
        return error


def write_tensors(path: Path, architecture: str, tensors: dict[str, torch.Tensor]) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 6.0)
    for name, values in tensors.items():
        writer.add_tensor(name, values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(path: Path) -> dict[str, Any]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def id_of(values: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return values.dtype, values.shape, values.contiguous().numpy().tobytes()
