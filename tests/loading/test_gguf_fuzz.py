"""Random damage to GGUF files: every file loads correctly or is refused, at once and without taking memory.

The soak `tests.soak.gguf_mutations` does the same on a larger scale, with a process for each file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistralrs.errors import LoadError
from tests.loading.mutations import Base, assert_sound_or_refused, mutate, open_and_read

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> Base:
    return Base.read(tiny_llama)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "mutant.gguf"


@FUZZ
@given(random=st.randoms(use_true_random=False))
def test_mutated_tiny_model(base: Base, scratch: Path, random: Random) -> None:
    mutate(base, random).write(scratch)
    assert_sound_or_refused(scratch)


@FUZZ
@given(
    version=st.integers(0, 4),
    counts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    rest=st.binary(max_size=200),
)
def test_random_bytes_after_a_valid_start(scratch: Path, version: int, counts: tuple[int, int], rest: bytes) -> None:
    scratch.write_bytes(b"GGUF" + struct.pack("<IQQ" if version > 1 else "<III", version, *counts) + rest)
    assert_sound_or_refused(scratch)


def test_mutations_reach_both_outcomes_and_repeat(base: Base, scratch: Path) -> None:
    refused = 0
    for seed in range(40):
        mutant = mutate(base, Random(seed))
        assert mutant == mutate(base, Random(seed))
        mutant.write(scratch)
        try:
            open_and_read(scratch)
        except LoadError:
            refused += 1
    assert 0 < refused < 40
