"""Damaged JSON files of adapters: a named error, or values within their bounds; never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mistralrs.adapters.lora.lora_config import read_lora_config
from mistralrs.adapters.lora.target_modules import targets_module
from mistralrs.adapters.orderings.layer_axis import adaptable_modules
from mistralrs.adapters.orderings.ordering import read_ordering
from mistralrs.adapters.xlora.xlora_config import read_xlora_config
from mistralrs.errors import LoadError
from tests.adapters.adapter_files import xlora_content

MODULES = adaptable_modules("llama", layers=2)
ODD = [None, True, -1, 0, 1, 1 << 70, 1e400, "", "x", "(", "a/b", [], [[]], {}, {"x": {}}, ["a", 1]]


def read_targets(path: Path) -> None:
    config = read_lora_config(path)
    for module in MODULES:
        targets_module(config, module, linear=True)


FILES: dict[str, tuple[Callable[[Path], object], dict[str, object]]] = {
    "ordering": (read_ordering, {"order": ["a", "b"], "layers": {"x": 1, "y": 0}, "base_model_id": "o/b"}),
    "xlora": (
        read_xlora_config,
        xlora_content(xlora_depth=2, softmax_temperature=0.5, top_k_lora=1, enable_softmax_topk=True, use_bias=True),
    ),
    "peft": (read_xlora_config, {"peft_type": "XLORA", "hidden_size": 8, "adapters": {"0": "x"}, "revision": None}),
    "lora": (
        read_targets,
        {
            "peft_type": "LORA",
            "target_modules": ["q_proj"],
            "exclude_modules": ".*k",
            "layers_to_transform": [0],
            "layers_pattern": "layers",
        },
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_damage_is_a_named_error(tmp_path: Path, name: str) -> None:
    read, content = FILES[name]
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.json"
    whole = json.dumps(content).encode()
    refused, unnamed = 0, []
    for number in range(400):
        if number % 2:
            key = list(content)[random.integers(len(content))]
            damaged = json.dumps(content | {key: ODD[random.integers(len(ODD))]}).encode()
        else:
            damaged = bytearray(whole)
            for _ in range(random.integers(1, 4)):
                damaged[random.integers(len(damaged))] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except LoadError as error:
            refused += 1
            if str(path) not in error.message or not error.hint:
                unnamed.append(error.message)
    assert refused > 100
    assert unnamed == []
