"""Adapters that act beside each other without being merged, against peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mistralrs.adapters.adapter_placement import AdapterPlacement
from mistralrs.adapters.lora.gguf_lora import read_gguf_lora
from mistralrs.adapters.lora.module_names import module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.adapters.tools.convert_adapter import convert_adapter
from mistralrs.errors import LoadError
from mistralrs.ops.linear import AdapterUse
from tests.adapters.peft_adapters import adapted_logits, write_adapter
from tests.adapters.test_merging import (
    ALL_LAYERS,
    CELLS,
    EXPERTS,
    FIELDS,
    OTHERS,
    assert_equal,
    tokens,
)
from tests.architectures import Folders
from tests.parity.running import Running, Text, random_tokens
from tests.tiny import TOKENIZER_SIZE

MERGE_ONLY = {"bias-all", "bias-lora_only", "dora-embedding"} | {
    field for field in FIELDS if field.startswith(("modules_to_save", "trainable_token_indices"))
}
SAMPLE = Random(12).sample([cell for cell in CELLS if cell[0] not in MERGE_ONLY], 30)
SLOTS = 3


class Live:
    """A model with adapters in its slots."""

    def __init__(self, folder: Path, *paths: Path, isa: str | None = "torch", half: bool = False) -> None:
        self.running = Running.load(folder, precision="f32", isa=isa, threads=1, dtype="f32", adapter_slots=SLOTS)
        model = self.running.model
        names = module_names(model.architecture, model.spec)
        self.placement = AdapterPlacement(model.decoder, self.running.backend, in_half_precision=half)
        for slot, path in enumerate(paths):
            self.placement.write(slot, self.placement.prepare(read_peft(path, names)))

    def logits(self, *uses: AdapterUse) -> torch.Tensor:
        return self.running.whole(tokens(), uses)


def check(name: str, settings: Mapping[str, Any], folders: Folders, path: Path, isa: str | None = "torch") -> None:
    folder = folders(name)
    write_adapter(path, folder, seed=3, settings=settings)
    live = Live(folder, path, isa=isa)
    assert_equal(live.logits(AdapterUse(0)), adapted_logits(folder, {"a": path}, tokens()))
    plain = live.logits()
    live.placement.clear(0)
    assert torch.equal(live.logits(AdapterUse(0)), plain)


@pytest.mark.parametrize(("field", "name"), SAMPLE)
def test_live_logits_are_those_of_peft(field: str, name: str, folders: Folders, tmp_path: Path) -> None:
    check(name, FIELDS[field], folders, tmp_path / "a")


@pytest.mark.parametrize("field", sorted(MERGE_ONLY))
def test_what_changes_the_base_itself_is_refused_by_name(field: str, folders: Folders, tmp_path: Path) -> None:
    folder = folders("phi2" if field == "bias-lora_only" else "llama")
    if "bias" in field:
        folder = folders("phi2")
    path = write_adapter(tmp_path / "a", folder, seed=3, settings=FIELDS[field])
    name = {"dora-embedding": "use_dora", "bias-all": "bias", "bias-lora_only": "bias"}.get(field, field.split("-")[0])
    with pytest.raises(LoadError, match=f"{name}: such an adapter changes the base itself") as refusal:
        Live(folder, path)
    assert "--merge" in (refusal.value.hint or "")


@pytest.mark.native
@pytest.mark.parametrize("name", ["llama", "mixtral", "phi2", "gemma", "phi3", "qwen3moe"])
def test_native_kernels(name: str, folders: Folders, tmp_path: Path) -> None:
    check(name, ALL_LAYERS, folders, tmp_path / "a", isa=None)


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name: str, folders: Folders, tmp_path: Path) -> None:
    check(name, ALL_LAYERS, folders, tmp_path / "a")


@pytest.mark.parametrize("case", [case for case in EXPERTS if case != "saved"])
def test_experts(case: str, folders: Folders, tmp_path: Path) -> None:
    check("mixtral", EXPERTS[case], folders, tmp_path / "a")


@pytest.mark.native
def test_adapters_mixes_and_the_base_in_one_batch(folders: Folders, tmp_path: Path) -> None:
    """Every sequence has the bits of its solo run and the logits of peft."""
    folder = folders("qwen3")
    settings = ({}, {"r": 2, "target_modules": ["q_proj", "down_proj"]}, {"r": 17, **ALL_LAYERS})
    paths = [
        write_adapter(tmp_path / str(index), folder, seed=index, settings=setting)
        for index, setting in enumerate(settings)
    ]
    named = dict(zip("abc", paths, strict=True))
    live = Live(folder, *paths, isa=None)
    cases = [{}, {"a": 1.0}, {"b": -0.5}, {"c": 2.0}, {"a": 0.75, "b": -1.5, "c": 0.25}, {"c": 1.0, "a": 1.0}]
    texts = [Text(random_tokens(TOKENIZER_SIZE, 9 + seed, seed=seed), seed=seed) for seed in range(len(cases))]
    uses = [[AdapterUse("abc".index(name), weight) for name, weight in case.items()] for case in cases]
    together = live.running.step(*((text, 0, len(text)) for text in texts), uses=uses)
    for text, case, acting, logits in zip(texts, cases, uses, together, strict=True):
        assert torch.equal(live.running.step((text, 0, len(text)), uses=[acting])[0], logits)
        expected = adapted_logits(folder, named, text.tokens, weights=case) if case else None
        if expected is None:
            expected = Running.load(folder, precision="f32", threads=1, dtype="f32").whole(text.tokens)
        assert_equal(logits, expected)


@pytest.mark.native
def test_an_adapter_acts_from_its_first_position_on(folders: Folders, tmp_path: Path) -> None:
    """The tokens before have the base's bits; those after read the base's KV before it."""
    folder = folders("llama")
    live = Live(folder, write_adapter(tmp_path / "a", folder, seed=3), isa=None)
    plain, late = live.logits(), live.logits(AdapterUse(0, 1.0, 20))
    assert torch.equal(late[:20], plain[:20])
    assert not torch.equal(late[20], plain[20])
    text = Text(tokens(), seed=0)
    live.running.step((text, 0, 20))
    [after] = live.running.step((text, 20, len(text)), uses=[[AdapterUse(0)]])
    assert torch.equal(after, late[20:])


@pytest.mark.native
def test_half_precision_costs_little(folders: Folders, tmp_path: Path) -> None:
    """Also where the values of a matrix lie far from 1, which float16 alone would lose."""
    folder = folders("llama")
    for deviation in (0.1, 3e-5):
        path = write_adapter(
            tmp_path / str(deviation), folder, seed=3, deviation=deviation,
            settings={**ALL_LAYERS, "lora_alpha": 6 * (0.1 / deviation) ** 2},
        )  # fmt: skip
        exact, rounded = (Live(folder, path, isa=None, half=half).logits(AdapterUse(0)) for half in (False, True))
        error = (rounded - exact).abs().max() / (exact.amax() - exact.amin())
        assert 0 < error < 5e-4


@pytest.mark.native
@pytest.mark.parametrize("half", [False, True])
def test_a_gguf_adapter_is_its_peft_adapter(half: bool, folders: Folders, tmp_path: Path) -> None:
    """Also where the file has the rows of q and k in another order."""
    folder = folders("llama")
    path = write_adapter(tmp_path / "a", folder, seed=3, settings=ALL_LAYERS)
    file = tmp_path / "a.gguf"
    convert_adapter(path, folder, file, to="gguf")
    live = Live(folder, path, isa=None, half=half)
    model = live.running.model
    adapter = read_gguf_lora(file, name="g", architecture=model.architecture, spec=model.spec)
    live.placement.write(1, live.placement.prepare(adapter))
    assert torch.equal(live.logits(AdapterUse(1)), live.logits(AdapterUse(0)))


def test_a_copy_of_another_embedding_is_refused(folders: Folders, tmp_path: Path) -> None:
    folder = folders("llama")
    path = write_adapter(tmp_path / "a", folder, settings=FIELDS["embedding"])
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    [copy] = [name for name in tensors if "embed_tokens.base_layer" in name]
    Live(folder, path)
    save_file(tensors | {copy: tensors[copy] + 1}, file)
    with pytest.raises(LoadError, match="its copy of the base's embed_tokens is not the model's"):
        Live(folder, path)
