"""A tiny Llama with tokenizer, and two adapters for it, as real files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.adapters.peft_adapters import write_adapter
from tests.architectures import VARIANTS, write_folder

RANKS = {"a": 4, "b": 2}


@dataclass(frozen=True)
class AdapterFolders:
    base: Path
    root: Path
    """The folder of the adapters' folders."""
    adapters: Mapping[str, Path]


def write_adapter_folders(path: Path) -> AdapterFolders:
    """Writes them below ``path``; their additions are strong enough to change answers."""
    base = write_folder(path / "base", VARIANTS["llama"])
    root = path / "adapters"
    adapters = {
        name: write_adapter(
            root / name,
            base,
            seed=seed,
            deviation=0.5,
            settings={"r": rank, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        )
        for seed, (name, rank) in enumerate(RANKS.items())
    }
    return AdapterFolders(base, root, adapters)


@pytest.fixture(scope="module")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> AdapterFolders:
    return write_adapter_folders(tmp_path_factory.mktemp("adapters"))
