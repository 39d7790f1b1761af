"""The memory of a process: of quantizing, never as much as the stored model, and of weights that stay in their file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.architectures import VARIANTS, write_folder

MIB = 1 << 20
LAYER = 4 * (2 * 1024 * 1024 + 2 * 512 * 1024 + 3 * 1024 * 2816)
"""Bytes of a layer as it is stored."""
SLACK = 32 * MIB
"""Bytes for weights decoded at once, fragmentation of the heap, and threads."""

PROGRAM = """
import sys
from pathlib import Path

from mistralrs.loading.pipeline import LoadPlan, load
from mistralrs.loading.quantize_model import quantize_model
from mistralrs.ops.backend import resolve


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    field = "RssAnon:" if sys.argv[1] == "in place" else "VmHWM:"
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


kept = []


def run(folder):
    if sys.argv[1] == "write":
        quantize_model(folder, folder / "out.gguf", "q8_0")
    else:
        stays = sys.argv[1] == "in place"
        plan = LoadPlan(max_seqs=1, max_batch_tokens=16, isq=None if stays else "q8_0", in_place=stays)
        kept.append(load(folder, resolve("cpu", threads=1).backend, plan))


run(Path(sys.argv[2]))
before = peak()
run(Path(sys.argv[3]))
print(peak() - before)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small model and one that is large enough to be measured."""
    folder, variant = tmp_path_factory.mktemp("models"), VARIANTS["llama-linear"]
    settings = {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 32768, "head_dim": 256}
    large = write_folder(folder / "large", replace(variant, settings=settings), dtype=torch.float32)
    return write_folder(folder / "small", variant), large


@pytest.mark.native
@pytest.mark.parametrize(("how", "model_is_kept"), [("write", False), ("load", True)])
def test_the_peak_is_the_quantized_model_and_a_layer(how: str, model_is_kept: bool, folders: tuple[Path, Path]) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("the system does not say how much memory a process had")
    small, large = folders
    stored = (large / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(small), str(large)], capture_output=True, text=True, check=True
    )
    allowed = LAYER + SLACK + (stored * 34 // 128 if model_is_kept else 0)
    assert allowed < stored * 2 // 3
    assert int(done.stdout) <= allowed, f"{int(done.stdout) / MIB:.0f} MiB of a model of {stored / MIB:.0f} MiB"


@pytest.mark.native
def test_weights_that_stay_in_the_file_take_no_memory(folders: tuple[Path, Path]) -> None:
    """No memory of the process's own: the file's pages are the system's."""
    if "RssAnon:" not in Path("/proc/self/status").read_text(encoding="ascii"):
        pytest.skip("the system does not say which memory is the process's own")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "in place", *map(str, folders)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= SLACK, f"{int(done.stdout) / MIB:.0f} MiB"
