"""A mixture of experts: kernel against the reference implementation, and bitwise laws of the kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from types import MappingProxyType

import pytest
import torch

from mistralrs.ops.arena import Arena
from mistralrs.ops.backend import Backend
from mistralrs.ops.linear import AdapterUse
from mistralrs.ops.weight import Matrix
from mistralrs.ops.workspace import Sizes, Workspace
from tests.buffers import tensor_of
from tests.ops.harness import (
    FLOATS,
    LowRank,
    Normalization,
    adapted,
    adapted_step,
    for_every_isa,
    in_place,
    native,
    random_matrix,
    random_values,
    reference,
    step_args,
)
from tests.tolerances import BFLOAT16, EXPERTS, ONE_TERM_EXPERTS, TWO_TERM_EXPERTS

pytestmark = pytest.mark.native

HIDDEN, FFN = 256, 48
BLOCK_FFN = 256
"""The inner size where ``down`` is stored in blocks."""
PARTS = ("gate", "up", "down")
Names = Sequence[str | tuple[str, ...]]
MIXED: tuple[Names, ...] = (
    (("Q4_K", "Q6_K", "Q2_K"), ("Q2_K", "Q4_K", "Q6_K"), ("Q6_K", "Q2_K", "Q4_K")),
    (("Q8_0", "Q4_K", "F16", "Q5_0"), ("Q4_K", "Q8_0"), ("Q5_K", "F16", "Q3_K", "Q4_1", "Q8_0")),
    (("Q4_0", "Q4_1", "Q8_0"), ("Q8_0", "Q5_1"), ("F32", "Q4_0", "BF16")),
)
"""Types of gate, up and down that experts of one layer have in turn: sums of 16 columns and of 32, scales of 32 columns
and of 256, floats beside int8."""


def mixture(
    backend: Backend,
    x: torch.Tensor,
    *,
    experts: int,
    used: int,
    names: Names = ("F32", "F32", "F32"),
    outlier_threshold: float = math.inf,
    normalize_weights: bool = True,
    scale: float = 1.0,
    placed_matrix: Callable[[Matrix], Matrix] = lambda matrix: matrix,
    deltas: Mapping[tuple[str, int], Sequence[LowRank | None]] = MappingProxyType({}),
    uses: Sequence[Sequence[AdapterUse]] = (),
) -> torch.Tensor:
    """Returns the addition to x (tokens, hidden), by experts whose weights depend only on their number.

    ``names``: the types of gate, up and down; of several, experts have one each in turn.
    ``placed_matrix``: gives the matrix that is placed for an expert's.
    ``deltas``: by slot, of a part and its expert (0 for the router); ``uses``: of each token.
    """
    tokens = len(x)
    gate_types, up_types, down_types = ((types,) if isinstance(types, str) else types for types in names)
    ffn = FFN if FLOATS.issuperset(down_types) else BLOCK_FFN
    shapes = ((gate_types, ffn, HIDDEN), (up_types, ffn, HIDDEN), (down_types, HIDDEN, ffn))
    sizes = Sizes(
        max_tokens=tokens, max_seqs=1, max_logits=1, max_blocks=1,
        hidden=HIDDEN, q=1, kv=1, ffn=ffn, vocab=1, rotary=(),
    )  # fmt: skip
    work = Workspace(sizes)
    tensor_of(work.x).copy_(x)
    gate, up, down = (
        [
            adapted(
                backend,
                placed_matrix(
                    random_matrix(types[expert % len(types)], rows=rows, columns=columns, seed=100 * part + expert)
                ),
                deltas.get((PARTS[part], expert), ()),
            )
            for expert in range(experts)
        ]
        for part, (types, rows, columns) in enumerate(shapes)
    )
    router = random_matrix("F32", rows=experts, columns=HIDDEN, seed=7)
    norm = Normalization(weight=1 + random_values(HIDDEN, seed=3) / 8)
    op = backend.moe(
        work,
        norm=norm.bind(Arena(4 * HIDDEN + 256)),  # which lives as long as the operation alone holds it
        router=adapted(backend, router, deltas.get(("router", 0), ())),
        gate=gate,
        up=up,
        down=down,
        used=used,
        activation="silu",
        outlier_threshold=outlier_threshold,
        normalize_weights=normalize_weights,
        scale=scale,
    )
    backend.program([op], adapted_step(uses) if uses else step_args(tokens=tokens))()
    return tensor_of(work.x) - x


@for_every_isa
@pytest.mark.parametrize(("experts", "used"), [(1, 1), (4, 1), (8, 2), (17, 5)])
def test_kernel_equals_reference(isa: str, experts: int, used: int) -> None:
    for tokens in (1, 3, 9, 40):
        x = random_values(tokens, HIDDEN, seed=tokens)
        result = mixture(native(isa), x, experts=experts, used=used)
        expected = mixture(reference(), x, experts=experts, used=used)
        assert expected.abs().max() > 0.1
        assert (result - expected).abs().max() <= EXPERTS * (expected.abs().max() + x.abs().max())


@for_every_isa
@pytest.mark.parametrize("names", MIXED)
def test_experts_of_several_types_equal_the_reference(isa: str, names: Names) -> None:
    """Closely with two terms of every activation; with one term and outliers, up to values that are rounded the other
    way."""
    for tokens in (1, 9, 40):
        x = random_values(tokens, HIDDEN, seed=tokens)
        for threshold, tolerance in ((0.0, TWO_TERM_EXPERTS), (1.5, ONE_TERM_EXPERTS)):
            result, expected = (
                mixture(backend, x, experts=7, used=3, names=names, outlier_threshold=threshold)
                for backend in (native(isa), reference())
            )
            if threshold and any("BF16" in types for types in names):
                tolerance += BFLOAT16
            assert expected.norm() > 0.1 * x.norm()
            assert (result - expected).norm() <= tolerance * expected.norm()


@for_every_isa
def test_weights_that_are_not_normalized_and_a_scale(isa: str) -> None:
    x = random_values(9, HIDDEN, seed=1)

    def added(backend: Backend, normalize_weights: bool, scale: float = 1.0) -> torch.Tensor:
        return mixture(backend, x, experts=8, used=2, normalize_weights=normalize_weights, scale=scale)

    for given in ((False, 1.0), (True, 0.25), (False, 4.0)):
        result, expected = added(native(isa), *given), added(reference(), *given)
        assert (result - expected).abs().max() <= EXPERTS * (expected.abs().max() + x.abs().max())
    plain, small = added(native(isa), False), added(native(isa), True)
    assert plain.norm() < 0.9 * small.norm(), "the two best of eight have less than all of the weight"


@for_every_isa
@pytest.mark.parametrize("outlier_threshold", [math.inf, 1.0, 0.0])
@pytest.mark.parametrize(
    "names", [("F32", "F16", "BF16"), ("Q4_K", "Q6_K", "F16"), ("Q8_0", "Q8_0", "F32"), *MIXED[:2]]
)
def test_a_token_alone_is_the_token_in_a_batch(isa: str, names: Names, outlier_threshold: float) -> None:
    """Bit for bit, whoever its neighbours are, whichever experts they share, and whatever the number of threads."""
    x = random_values(33, HIDDEN, seed=1)
    alone = torch.cat(
        [
            mixture(native(isa), x[t : t + 1], experts=6, used=2, names=names, outlier_threshold=outlier_threshold)
            for t in range(33)
        ]
    )
    random = Random(1)
    for count in (2, 8, 9, 33):
        tokens = random.sample(range(33), count)
        threads = random.choice((1, 2, 3))
        together = mixture(
            native(isa, threads=threads), x[tokens], experts=6, used=2, names=names, outlier_threshold=outlier_threshold
        )
        assert torch.equal(together, alone[tokens])


@for_every_isa
@pytest.mark.usefixtures("distance")
def test_threads_do_not_matter(isa: str) -> None:
    """Bit for bit, whether experts have one token each or several."""
    for tokens in (1, 5, 40):
        x = random_values(tokens, HIDDEN, seed=tokens)
        first, *others = (
            mixture(
                native(isa, threads=threads),
                x,
                experts=6,
                used=2,
                names=("Q4_K", "Q6_K", "Q8_0"),
                outlier_threshold=1.0,
            )
            for threads in (1, 2, 3)
        )
        assert all(torch.equal(other, first) for other in others), tokens


@for_every_isa
@pytest.mark.parametrize("names", [("F32", "F16", "BF16"), ("Q4_K", "Q6_K", "F16"), ("Q8_0", "Q4_K", "F32"), MIXED[1]])
def test_experts_that_stay_in_their_file_give_the_same(isa: str, names: Names) -> None:
    for tokens in (1, 40):
        x = random_values(tokens, HIDDEN, seed=tokens)
        packed, stored = (
            mixture(native(isa), x, experts=4, used=2, names=names, outlier_threshold=1.0, placed_matrix=each)
            for each in (lambda matrix: matrix, in_place)
        )
        assert torch.equal(stored, packed)
