"""Placed weights hold exactly what the file's types define: decoded whole, and row by row in the embedding."""

from __future__ import annotations

import mmap
from array import array
from random import Random

import numpy as np
import pytest
import torch

from mistralrs.errors import LoadError
from mistralrs.ops.arena import Arena, buffer
from mistralrs.ops.backend import Backend, Rotary
from mistralrs.ops.linear import Linear
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.weight import Matrix, read_vector
from mistralrs.ops.workspace import Sizes, StepArgs, Workspace
from mistralrs.quant.dequantize import dequantize
from mistralrs.quant.types import DECODED, EXPANDED, TYPES
from tests.buffers import tensor_of
from tests.ops.harness import FLOATS, decoded, for_every_isa, in_place, native, random_matrix, reference
from tests.tolerances import ROTARY


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal numbers, and NaN where the other has NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def embed(
    backend: Backend, matrix: Matrix, tokens: list[int], positions: list[int], *, frequencies: list[float], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows, and the table of cosines and sines (tokens, 2, half)."""
    sizes = Sizes(
        max_tokens=len(tokens), max_seqs=1, max_logits=1, max_blocks=1,
        hidden=matrix.columns, q=1, kv=1, ffn=1, vocab=1, rotary=(len(frequencies),),
    )  # fmt: skip
    work, args = Workspace(sizes), StepArgs(sizes)
    inv_freq = buffer(Arena(4096), len(frequencies))
    inv_freq.values[:] = array("f", frequencies)
    count = len(tokens)
    args.set(
        tokens=tokens, positions=positions, slot_mapping=[positions], query_start_loc=[0, count], seq_lens=[count],
        block_tables=[[[0]]], logits_indices=[],
    )  # fmt: skip
    rotary = Rotary(inv_freq, work.rotary[0], 1.5)
    op = backend.embed(Linear(backend.place(matrix)), work, rotaries=[rotary], scale=scale)
    backend.program([op], args)()
    return tensor_of(work.x).clone(), tensor_of(work.rotary[0]).clone()


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_packing_in_the_background_gives_the_same(threads: int) -> None:
    """Whether a matrix is packed by the threads beside the caller or, once it waits, by the caller."""
    names = [name for name in TYPES if name not in EXPANDED and name not in DECODED]
    matrices = [
        random_matrix(name, rows=rows, columns=256, seed=rows, ordered=ordered)
        for name in names
        for rows, ordered in ((1, False), (17, True), (4100, False))
    ]
    backend, seen = NativeBackend(threads=threads), list[int]()
    with backend.packing() as packing:
        weights = [packing.place(matrix) for matrix in matrices]
        packing.wait(seen.append)
    assert seen[-1] == len(matrices)
    assert seen == sorted(seen)
    for matrix, weight in zip(matrices, weights, strict=True):
        assert torch.equal(tensor_of(weight.dense()), tensor_of(backend.place(matrix).dense()))


@pytest.mark.native
def test_packing_ends_before_it_is_done() -> None:
    """When an error ends the load, nobody waits for the matrices that are left: here for one behind 2 GB of zeros."""
    rows, columns = 2**19, 1024
    zeros = memoryview(mmap.mmap(-1, 4 * rows * columns, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    with NativeBackend(threads=2).packing() as packing:
        packing.place(Matrix("zeros", TYPES["F32"], rows, columns, zeros))
        last = packing.place(random_matrix("F32", rows=16, columns=1024, seed=1))
    assert not tensor_of(last.dense()).any()


@pytest.mark.native
@for_every_isa
@pytest.mark.parametrize("name", TYPES)
def test_packing_loses_nothing(isa: str, name: str) -> None:
    """Also of scales that are zero, negative, subnormal or as large as they get, and with rows in another order."""
    block = TYPES[name].block_len
    for rows, columns, ordered in (
        (1, max(block, 33), False),
        (17, 2 * block, True),
        (48, 3 * block, False),
        (130, block, True),
    ):
        columns = columns // block * block
        matrix = random_matrix(name, rows=rows, columns=columns, seed=rows, odd=True, ordered=ordered)
        weights = decoded(matrix)
        for each in (matrix, in_place(matrix)):
            assert same(tensor_of(native(isa).place(each).dense()), weights)
            assert same(tensor_of(reference().place(each).dense()), weights)


@pytest.mark.native
@for_every_isa
@pytest.mark.parametrize("name", TYPES)
def test_embedding_rows_are_exact(isa: str, name: str) -> None:
    random = Random(name)
    matrix = random_matrix(name, rows=130, columns=256, seed=7, odd=True)
    weights = decoded(matrix)
    for count in (1, 2, 17, 40):
        tokens = [random.randrange(130) for _ in range(count)]
        positions = list(range(count))
        rows, _ = embed(native(isa), matrix, tokens, positions, frequencies=[1.0], scale=1.0)
        assert same(rows, weights[tokens])
        scaled, _ = embed(native(isa), matrix, tokens, positions, frequencies=[1.0], scale=3.0)
        assert same(scaled, weights[tokens] * 3.0)


@pytest.mark.native
@for_every_isa
def test_rotary_table(isa: str) -> None:
    """To float32's last digit, far out too, and against numbers of twice the width."""
    matrix = random_matrix("F32", rows=4, columns=32, seed=1)
    frequencies = [10000.0 ** (-i / 32) for i in range(32)]
    positions = [0, 1, 2, 511, 4095, 131071]
    _, table = embed(native(isa), matrix, [0] * 6, positions, frequencies=frequencies, scale=1.0)
    _, expected = embed(reference(), matrix, [0] * 6, positions, frequencies=frequencies, scale=1.0)
    assert (table - expected).abs().max() <= 1.5 * ROTARY
    angles = torch.tensor(positions).float()[:, None] * torch.tensor(frequencies)
    exact = 1.5 * torch.stack([angles.double().cos(), angles.double().sin()], dim=1)
    assert (table - exact).abs().max() <= 1.5 * ROTARY


@pytest.mark.native
@pytest.mark.parametrize("name", sorted(TYPES.keys() - FLOATS))
def test_a_width_that_is_no_multiple_of_a_block_is_refused(name: str) -> None:
    type_ = TYPES[name]
    matrix = Matrix("blk.0.attn_q.weight", type_, 16, type_.block_len + 16, memoryview(bytearray(4096)))
    backend = NativeBackend(threads=1)
    with pytest.raises(LoadError, match=rf"blk.0.attn_q.weight: {matrix.columns} columns are no multiple of {name}"):
        backend.placed_bytes(matrix)


def test_vectors_of_every_type() -> None:
    values = torch.tensor([0.0, 1.0, -2.5, 65504.0, 6e-8])
    for name, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        stored = values.to(dtype)
        read = read_vector("v", TYPES[name], stored.view(torch.uint8).numpy().data.cast("B"))
        assert read.tolist() == stored.float().tolist()
    for type_ in (TYPES | EXPANDED | DECODED).values():
        data = np.random.default_rng(1).integers(0, 60, (1, type_.row_bytes(512)), dtype=np.uint8)
        expected = dequantize(type_, torch.from_numpy(data), 512)
        assert torch.tensor(read_vector("v", type_, data.data.cast("B"))).equal(expected[0]), type_.name
    with pytest.raises(LoadError, match="v: 33 bytes do not split in blocks of Q8_0"):
        read_vector("v", TYPES["Q8_0"], memoryview(bytes(33)))
