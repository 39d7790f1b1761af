"""The sampling parameters that a model's makers recommend, as files have them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mistralrs.api.serving.model_sampling import usable_sampling
from mistralrs.errors import LoadError
from mistralrs.loading.describe import describe
from mistralrs.loading.sampling_defaults import folder_sampling, gguf_sampling
from tests.architectures import Variant, write_folder
from tests.gguf_edits import edited, put
from tests.tiny import write_tiny


def test_a_gguf_files_metadata() -> None:
    stored = {
        "general.sampling.temp": 0.6000000238,
        "general.sampling.top_k": 20,
        "general.sampling.xtc_threshold": 0.1,
    }
    assert gguf_sampling(stored) == {"temperature": 0.6, "top_k": 20, "xtc_threshold": 0.1}
    assert gguf_sampling({"general.name": "x"}) == {}
    odd = {"general.sampling.temp": math.nan, "general.sampling.top_k": True, "general.sampling.top_p": "0.5"}
    assert gguf_sampling(odd) == {}


def test_a_folders_file(tmp_path: Path) -> None:
    assert folder_sampling(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"temperature": 1, "top_p": None, "min_p": 0.05, "do_sample": False, "max_length": 9}))
    assert folder_sampling(tmp_path) == {"temperature": 1.0, "min_p": 0.05}
    path.write_text("[")
    with pytest.raises(LoadError):
        folder_sampling(tmp_path)


def test_values_out_of_range_are_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    found = usable_sampling({"temperature": -1.0, "top_k": -1, "top_p": 0.9, "repetition_penalty": 0.0})
    assert found == {"top_k": 0, "top_p": 0.9}
    assert [each.getMessage().split(" is not used: ")[0] for each in caplog.records] == [
        "the model's own temperature",
        "the model's own repetition_penalty",
    ]


def test_descriptions_have_them(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf").path
    assert describe(path).sampling == {}
    assert describe(edited(path, tmp_path / "own.gguf", put("general.sampling.temp", 0.25))).sampling == {
        "temperature": 0.25
    }
    folder = write_folder(tmp_path / "llama", Variant("llama", {"rms_norm_eps": 1e-5}))
    (folder / "generation_config.json").write_text('{"top_p": 0.5}')
    assert describe(folder).sampling == {"top_p": 0.5}
