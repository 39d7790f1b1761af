"""Memory that a backend allocates for a model: vectors that are copies, and buffers with views of their rows."""

from __future__ import annotations

from array import array
from typing import Literal

import pytest
import torch

from mistralrs.ops.backend import Backend, Norm, Sizes, resolve
from mistralrs.ops.reference_ops import normalize
from tests.buffers import tensor_of
from tests.ops.harness import random_values

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


def test_rows_share_the_memory_of_their_buffer(backend: Backend) -> None:
    sizes = Sizes(
        max_tokens=4, max_seqs=2, max_logits=3, max_blocks=5, hidden=3, q=64, kv=32, ffn=128, vocab=99, rotary=()
    )
    whole = backend.workspace(sizes).x
    whole.values[:] = array("f", range(12))
    rows = whole.rows(1, 3)
    assert (rows.shape, rows.address, list(rows.values)) == ((2, 3), whole.address + 12, [3, 4, 5, 6, 7, 8])
    rows.values[0] = 0.5
    assert whole.values[3] == 0.5
    assert tensor_of(whole.rows(4, 4)).shape == (0, 3)
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(IndexError, match=f"rows {start} to {stop} of a buffer of 4"):
            whole.rows(start, stop)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normalize_writes_the_rows_that_it_is_given(backend: Backend, kind: Literal["rms", "layer"]) -> None:
    """Of the same bits with every backend: embeddings do not depend on it."""
    sizes = Sizes(max_tokens=5, max_seqs=1, max_logits=1, max_blocks=1, hidden=96, q=1, kv=1, ffn=1, vocab=1, rotary=())
    work = backend.workspace(sizes)
    values = random_values(5, 96, seed=1)
    tensor_of(work.x).copy_(values)
    norm = Norm(backend.vector([1.5] * 96), 1e-5, kind, backend.vector([0.25] * 96) if kind == "layer" else None)
    backend.normalize(work.x.rows(1, 4), work.projected.rows(1, 4), norm=norm)
    result = tensor_of(work.projected)
    assert torch.equal(result[1:4], normalize(values[1:4], norm))
    assert not result[0].any()
    assert not result[4].any()
    assert torch.equal(tensor_of(work.x), values)
