"""Merges adapters into models that are loaded, for tests that compare the logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from mistralrs.adapters.lora.lora_merge import LoraMerge, WeightedAdapter
from mistralrs.adapters.lora.module_names import module_names
from mistralrs.adapters.lora.peft_files import read_peft
from mistralrs.loading.architecture_lookup import hugging_face_mapping
from mistralrs.loading.checkpoint import MappedCheckpoint
from mistralrs.loading.model_metadata import HfMetadata, read_text_config
from mistralrs.loading.safetensors_file import SafetensorsFile
from mistralrs.models.parts import WeightMerge
from mistralrs.models.spec import DecoderSpec
from tests.parity.running import Running, random_tokens
from tests.tiny import TOKENIZER_SIZE
from tests.tolerances import MERGED_LOGITS


def spec_of(folder: Path) -> tuple[str, DecoderSpec]:
    """The architecture and spec of the model in a folder."""
    with SafetensorsFile.open(folder) as file:
        assert isinstance(file, MappedCheckpoint)
        config = read_text_config(file, folder / "config.json")
        architecture, form = hugging_face_mapping(folder, config, None)
        return architecture, form.spec(HfMetadata(file, folder / "config.json", config))


def merging(*adapters: tuple[Path, float]) -> Callable[[str, DecoderSpec], WeightMerge]:
    """What the loader is given: reads the adapters for the model that is loaded."""

    def merge(architecture: str, spec: DecoderSpec) -> LoraMerge:
        names = module_names(architecture, spec)
        return LoraMerge([WeightedAdapter(read_peft(path, names), weight) for path, weight in adapters], spec=spec)

    return merge


def tokens() -> list[int]:
    return [5, 77, 100, 9, 3, *random_tokens(TOKENIZER_SIZE, 40, seed=8)]


def merged_logits(folder: Path, *adapters: tuple[Path, float], isa: str | None = "torch", gqa: int = 1) -> torch.Tensor:
    merge = merging(*adapters)
    running = Running.load(folder, precision="f32", isa=isa, threads=1, dtype="f32", gqa=gqa, merge=merge)
    return running.whole(tokens())


def assert_equal(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert logits.shape == expected.shape
    spread = (expected.amax() - expected.amin()).item()
    worst = (logits - expected).abs().max().item() / spread
    assert worst <= MERGED_LOGITS, f"off by {worst:.1e} of the range of the logits"
