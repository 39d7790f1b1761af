"""Random damage to safetensors and GGML files: every file loads correctly or is refused, at once."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mistralrs.errors import LoadError
from mistralrs.loading.ggml_file import GgmlFile
from mistralrs.loading.safetensors_file import SafetensorsFile
from tests.ggml_writer import FORMATS, write_ggml
from tests.loading.mutations import NUMBERS, Base, assert_sound_or_refused, check_and_read, mutate
from tests.tiny import TinyConfig, TinyModel, write_tiny

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers(-9, 99) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def read_safetensors(path: Path) -> None:
    with SafetensorsFile.open(path) as file:
        check_and_read(file)


def read_ggml(path: Path) -> None:
    with GgmlFile.open(path, gqa=2) as file:
        check_and_read(file)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny(tmp_path_factory.mktemp("fuzz") / "tiny.gguf", TinyConfig(tied=False, layers=1))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats") / "mutant.safetensors"


@pytest.fixture(scope="module")
def safetensors_base(tiny: TinyModel) -> Base:
    path = tiny.path.with_name("model.safetensors")
    save_file(tiny.weights, path)
    data = path.read_bytes()
    return Base(path.name, data, 0, ((0, 8), *((len(data) - 4 * back, 4) for back in range(1, 4))))


@pytest.fixture(scope="module")
def ggml_bases(tiny: TinyModel) -> list[Base]:
    bases = []
    for version, format_ in FORMATS.items():
        data = write_ggml(tiny.path.with_name("model.bin"), tiny, version=version, type_="Q4_0").path.read_bytes()
        header = [(len(format_.start) + 4 * index, 4) for index in range(-1, 7)]
        # The numbers before each tensor's name, and the lengths of a few tokens.
        names = [position for name in (b"tok_emb", b"layers.0", b"norm.w", b"output") for position in finds(data, name)]
        numbers = [(position - 4 * back, 4) for position in names for back in range(1, 6)]
        tokens = [(len(format_.start) + 28 + 4 * index, 4) for index in range(8)]
        bases.append(Base(version, data, 0, (*header, *numbers, *tokens)))
    return bases


def finds(data: bytes, part: bytes) -> list[int]:
    found, position = [], data.find(part)
    while position >= 0:
        found.append(position)
        position = data.find(part, position + 1)
    return found


@FUZZ
@given(random=st.randoms(use_true_random=False))
def test_mutated_safetensors(safetensors_base: Base, scratch: Path, random: Random) -> None:
    mutate(safetensors_base, random).write(scratch)
    assert_sound_or_refused(scratch, read_safetensors)


@FUZZ
@given(data=st.data())
def test_safetensors_with_another_value_in_the_header(
    safetensors_base: Base, scratch: Path, data: st.DataObject
) -> None:
    whole = safetensors_base.data
    (length,) = struct.unpack_from("<Q", whole)
    header = json.loads(whole[8 : 8 + length])
    place = header
    key = data.draw(st.sampled_from(sorted(header)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(JSON_VALUES)
    text = json.dumps(header).encode()
    scratch.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    assert_sound_or_refused(scratch, read_safetensors)


@FUZZ
@given(which=st.integers(0, len(FORMATS) - 1), random=st.randoms(use_true_random=False))
def test_mutated_ggml(ggml_bases: list[Base], scratch: Path, which: int, random: Random) -> None:
    mutate(ggml_bases[which], random).write(scratch)
    assert_sound_or_refused(scratch, read_ggml)


@FUZZ
@given(start=st.sampled_from([format_.start for format_ in FORMATS.values()]), rest=st.binary(max_size=200))
def test_random_bytes_after_a_ggml_start(scratch: Path, start: bytes, rest: bytes) -> None:
    scratch.write_bytes(start + rest)
    assert_sound_or_refused(scratch, read_ggml)


def test_mutations_reach_both_outcomes(safetensors_base: Base, ggml_bases: list[Base], scratch: Path) -> None:
    for base, read in [(safetensors_base, read_safetensors), *((base, read_ggml) for base in ggml_bases)]:
        refused = 0
        for seed in range(40):
            mutate(base, Random(seed)).write(scratch)
            try:
                read(scratch)
            except LoadError:
                refused += 1
        assert 0 < refused < 40, base.name
