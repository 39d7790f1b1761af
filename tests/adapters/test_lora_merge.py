"""Which adapters can be merged, which matrices change, and under what digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mistralrs.adapters.lora.lora_merge import LoraMerge, WeightedAdapter
from mistralrs.adapters.lora.module_names import ModuleNames, module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.errors import LoadError
from mistralrs.models.parts import WeightKey
from tests.adapters.merging import spec_of
from tests.adapters.peft_adapters import write_adapter
from tests.architectures import VARIANTS, write_folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"), VARIANTS["llama-biased-tied"])


@pytest.fixture(scope="module")
def names(llama: Path) -> ModuleNames:
    return module_names(*spec_of(llama))


@pytest.fixture(scope="module")
def original(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("original") / "style", llama, seed=5)


@pytest.mark.parametrize(
    ("settings", "weight", "others", "message"),
    [
        ({"alora_invocation_tokens": [5]}, 1.0, 0, "alora_invocation_tokens: .* cannot be merged"),
        ({}, float("nan"), 0, "the weight is nan, expected a number"),
        ({"use_dora": True}, 0.5, 0, r"use_dora: such an adapter has the weight 1, not 0\.5"),
        ({"use_dora": True}, 1.0, 1, "use_dora: such an adapter cannot be mixed"),
        ({"modules_to_save": ["k_proj"]}, 1.0, 1, "modules_to_save: such an adapter cannot be mixed"),
        ({"bias": "all"}, 1.0, 1, "bias: such an adapter cannot be mixed"),
        ({"trainable_token_indices": [4]}, 2.0, 0, "trainable_token_indices: such an adapter has the weight 1"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    settings: Mapping[str, Any],
    weight: float,
    others: int,
    message: str,
    llama: Path,
    names: ModuleNames,
    original: Path,
    tmp_path: Path,
) -> None:
    found = read_peft(write_adapter(tmp_path / "adapter", llama, settings=settings), names)
    used = [WeightedAdapter(found, weight), *[WeightedAdapter(read_peft(original, names))] * others]
    with pytest.raises(LoadError, match=message) as refusal:
        LoraMerge(used, spec=spec_of(llama)[1])
    assert refusal.value.hint


def test_the_head_keeps_its_bytes_where_only_the_embedding_changes(
    llama: Path, names: ModuleNames, tmp_path: Path
) -> None:
    """Though it becomes a matrix of its own. Rows of tokens and copies of the base change both."""
    embedding, head = WeightKey("embed_tokens"), WeightKey("lm_head")

    def merge(**settings: Any) -> LoraMerge:
        path = write_adapter(tmp_path / str(len(list(tmp_path.iterdir()))), llama, settings=settings)
        found = replace(read_peft(path, names), base_copies={})
        return LoraMerge([WeightedAdapter(found)], spec=spec_of(llama)[1])

    lora = merge(target_modules=["embed_tokens"])
    assert (lora.changes(embedding), lora.changes(head), lora.unties_head) == (True, False, True)
    rows = merge(trainable_token_indices=[4])
    assert (rows.changes(embedding), rows.changes(head), rows.unties_head) == (True, True, False)
    saved = merge(modules_to_save=["lm_head"])
    assert (saved.changes(embedding), saved.changes(head), saved.unties_head) == (False, True, True)
    plain = merge()
    assert (plain.changes(embedding), plain.changes(head), plain.unties_head) == (False, False, False)
    assert plain.changes(WeightKey("q_proj", 3))
    assert not plain.changes(WeightKey("k_proj", 3))


def test_the_merge_has_a_digest_of_adapters_and_weights(llama: Path, names: ModuleNames, original: Path) -> None:
    spec, found = spec_of(llama)[1], read_peft(original, names)

    def digest(*used: WeightedAdapter) -> bytes:
        return LoraMerge(used, spec=spec).digest

    renamed = replace(found, name="other", source="elsewhere")
    assert digest(WeightedAdapter(found)) == digest(WeightedAdapter(renamed))
    twice = digest(WeightedAdapter(found), WeightedAdapter(found))
    assert len({digest(WeightedAdapter(found)), digest(WeightedAdapter(found, 0.5)), twice}) == 3
