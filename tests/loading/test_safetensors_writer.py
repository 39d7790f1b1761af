"""The writer of safetensors: the `safetensors` package reads its files, and an unfinished one leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mistralrs.loading.safetensors_writer import SafetensorsInfo, write_safetensors

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "ä": torch.arange(3, dtype=torch.float16),
    "b": torch.arange(4, dtype=torch.bfloat16).view(2, 1, 2),
}
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
INFOS = [SafetensorsInfo(name, NAMES[values.dtype], tuple(values.shape)) for name, values in TENSORS.items()]
PIECES = [[memoryview(values.view(torch.uint8).numpy().tobytes())] for values in TENSORS.values()]


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"before")
    write_safetensors(path, INFOS, PIECES, metadata={"format": "pt"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(TENSORS)
        for name, values in TENSORS.items():
            found = file.get_tensor(name)
            assert found.dtype == values.dtype
            assert torch.equal(found, values)
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("pieces", [PIECES[:2], [*PIECES[:2], [PIECES[2][0][:-1]]], [*PIECES, PIECES[0]]])
def test_other_bytes_than_announced_leave_nothing_behind(pieces: list[list[memoryview]], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_safetensors(tmp_path / "model.safetensors", INFOS, pieces, metadata={})
    assert not [*tmp_path.iterdir()]
