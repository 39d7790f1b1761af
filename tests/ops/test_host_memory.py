"""What a backend allocates for a model: vectors that are copies, and apart from each other."""

from __future__ import annotations

from array import array

import pytest

from mistralrs.ops.backend import Backend, Sizes, resolve

LONG = 400_000
"""Values that no shared arena has room for."""


@pytest.fixture(params=[pytest.param(None, marks=pytest.mark.native), "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return resolve("cpu", threads=1, isa=request.param).backend


def test_vectors_are_copies_apart_from_each_other(backend: Backend) -> None:
    sources = [array("f", [0.5] * 3), array("f", [2.0] * LONG), array("f", [3.0] * 17)]
    vectors = [backend.vector(source) for source in sources]
    sources[0][0] = 9.0
    assert [vector.shape for vector in vectors] == [(3,), (LONG,), (17,)]
    assert [set(vector.values) for vector in vectors] == [{0.5}, {2.0}, {3.0}]
    assert [vector.address % 64 for vector in vectors] == [0, 0, 0]
    vectors[0].values[:] = array("f", [7.0] * 3)
    assert set(vectors[2].values) == {3.0}


def test_values_are_rounded_to_float32(backend: Backend) -> None:
    assert list(backend.vector([0.1, 1e-50]).values) == list(array("f", [0.1, 0.0]))


def test_many_short_vectors_need_more_than_one_arena(backend: Backend) -> None:
    vectors = [backend.vector([float(number)] * 50_000) for number in range(12)]
    assert [set(vector.values) for vector in vectors] == [{float(number)} for number in range(12)]


def test_buffers_of_steps_have_the_sizes_asked_for(backend: Backend) -> None:
    sizes = Sizes(
        max_tokens=4, max_seqs=2, max_logits=3, max_blocks=5, hidden=64, q=64, kv=32, ffn=128, vocab=99, rotary=(16,)
    )
    work, args = backend.workspace(sizes), backend.step_args(sizes)
    assert (work.x.shape, work.logits.shape, work.rotary[0].shape) == ((4, 64), (3, 99), (4, 2, 16))
    assert args.arrays["block_tables"].shape == (1, 2, 5)
    assert args.sizes == sizes
