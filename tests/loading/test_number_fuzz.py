"""Any number in a `config.json` or in the metadata of a GGUF file: the model loads, or is refused by name, at once.

Numbers of iterations and lengths of buffers must be checked first.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mistralrs.errors import LoadError
from mistralrs.loading.describe import describe
from mistralrs.loading.pipeline import LoadPlan, load
from mistralrs.ops.backend import resolve
from tests.architectures import VARIANTS, write_folder
from tests.gguf_edits import edited, put, store
from tests.gguf_of import write_gguf
from tests.loading.mutations import NUMBERS
from tests.multimodal import write_multimodal

SECONDS = 20.0
"""Seconds for one file that takes some milliseconds, even on a busy machine; only an endless loop takes longer."""
BYTES = 256 << 20
"""Bytes of resident memory, beyond those that the process had."""
INTEGERS = (*NUMBERS, 40, 4096, 16385, 1 << 24, 1 << 27, (1 << 27) + 1, -1, -(2**31), -(2**63))
FLOATS = (0.0, -1.0, 1e-45, 1e-38, 1e-30, 1e30, 3e38, float("inf"), float("nan"))
LONG_FLOATS = (*FLOATS, 5e-324, 1e-300, 1e300)


def load_whole(path: Path) -> None:
    describe(path)
    plan = LoadPlan(max_seqs=2, max_batch_tokens=32, kv_memory=1 << 24)
    load(path, resolve("cpu", threads=1).backend, plan)


def loads_or_is_refused(path: Path, change: object) -> bool:
    """Returns whether the model loads."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refusal = None
    try:
        load_whole(path)
    except LoadError as error:
        refusal = error
    assert time.process_time() - started < SECONDS, change
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < BYTES, change
    if refusal is not None:
        assert str(path) in refusal.message or str(path.parent) in refusal.message, (change, refusal)
        assert refusal.hint, (change, refusal)
    return refusal is None


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: write_folder(path, VARIANTS["llama"]),
    "mixtral": lambda path: write_folder(path, VARIANTS["mixtral"]),
    "phi3": lambda path: write_folder(path, VARIANTS["phi3-long"]),
    "smollm3": lambda path: write_folder(path, VARIANTS["smollm3"]),
    "gemma3": lambda path: write_multimodal(path, "gemma3"),
    "qwen2_5_vl": lambda path: write_multimodal(path, "qwen2_5_vl"),
}


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Paths to all numbers, and to some that are not there yet."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ((key, *path) for path in places(inner))
        if "hidden_size" in value:
            yield from (
                ("head_dim",),
                ("eos_token_id",),
                ("rope_theta",),
                ("sliding_window",),
                ("num_key_value_heads",),
            )
    elif isinstance(value, list) and value and isinstance(value[0], int | float):
        yield (0,)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield ()


@pytest.mark.parametrize("name", FOLDERS)
def test_numbers_of_a_config(name: str, tmp_path: Path) -> None:
    folder = FOLDERS[name](tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.pop("vision_config", None)
    random, paths = Random(name), sorted(set(places(config)), key=str)
    loaded = 0
    for _ in range(60):
        changed = json.loads(json.dumps(config))
        changes = {
            random.choice(paths): random.choice((*INTEGERS, *LONG_FLOATS, 10**400))
            for _ in range(random.choice((1, 1, 2)))
        }
        for path, value in changes.items():
            place = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
        (folder / "config.json").write_text(json.dumps(changed))
        loaded += loads_or_is_refused(folder, changes)
    assert 0 < loaded < 60


@pytest.mark.parametrize("name", ["llama", "mixtral", "phi3-long", "gemma3", "qwen3"])
def test_numbers_of_gguf_metadata(name: str, tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "sound.gguf", write_folder(tmp_path / "model", VARIANTS[name]), type_="F32")
    numbers: dict[str, type] = {}

    def note(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        numbers.update({key: type(value) for key, value in metadata.items() if type(value) in (int, float)})

    edited(source, tmp_path / "same.gguf", note)
    random, loaded, path = Random(name), 0, tmp_path / "changed.gguf"
    for _ in range(60):
        key = random.choice(sorted(numbers))
        integers = [value for value in INTEGERS if -(2**63) <= value < 2**63]
        value = random.choice(FLOATS if numbers[key] is float else integers)
        edited(source, path, put(key, value))
        loaded += loads_or_is_refused(path, {key: value})
    assert 0 < loaded < 60


def test_the_numbers_that_were_looped_over(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", VARIANTS["llama"])
    config = json.loads((folder / "config.json").read_text())
    for change, reason in (
        ({"head_dim": 2**40}, "heads of 1099511627776 columns are wider than 16384"),
        ({"hidden_size": 2**40, "head_dim": None}, "do not fit together"),
        ({"max_position_embeddings": 2**62}, "a context of 4611686018427387904 tokens is not between"),
        ({"num_hidden_layers": 2**40}, "layers are not between 1 and 1000"),
        ({"intermediate_size": 2**40}, "a feed-forward of 1099511627776 is wider"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(LoadError, match=reason):
            describe(folder)


def test_the_size_of_rotary_factors_is_checked_before_reading(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", VARIANTS["llama"])
    path = edited(
        write_gguf(tmp_path / "a.gguf", folder, type_="F32"), tmp_path / "b.gguf", store("rope_freqs.weight", 20000)
    )
    with pytest.raises(LoadError, match="has 20000 values; more than 16384 rotary factors are refused"):
        describe(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_files_that_never_end(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", VARIANTS["llama"])
    for make in (lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")):
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / name).unlink(missing_ok=True)
        make(copy / name)
        with pytest.raises(LoadError, match=f"{name} is not a regular file"):
            describe(copy)
        (copy / name).unlink()
        shutil.rmtree(copy)
