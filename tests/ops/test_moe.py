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
from tests.tolerances import EXPERTS

pytestmark = pytest.mark.native

HIDDEN, FFN = 256, 48
PARTS = ("gate", "up", "down")


def mixture(
    backend: Backend,
    x: torch.Tensor,
    *,
    experts: int,
    used: int,
    names: Sequence[str] = ("F32", "F32", "F32"),
    outlier_threshold: float = math.inf,
    normalize_weights: bool = True,
    scale: float = 1.0,
    placed_matrix: Callable[[Matrix], Matrix] = lambda matrix: matrix,
    deltas: Mapping[tuple[str, int], Sequence[LowRank | None]] = MappingProxyType({}),
    uses: Sequence[Sequence[AdapterUse]] = (),
) -> torch.Tensor:
    """Returns the addition to x (tokens, hidden), by experts whose weights depend only on their number.

    ``placed_matrix``: gives the matrix that is placed for an expert's.
    ``deltas``: by slot, of a part and its expert (0 for the router); ``uses``: of each token.
    """
    tokens = len(x)
    sizes = Sizes(
        max_tokens=tokens, max_seqs=1, max_logits=1, max_blocks=1,
        hidden=HIDDEN, q=1, kv=1, ffn=FFN, vocab=1, rotary=(),
    )  # fmt: skip
    work = Workspace(sizes)
    tensor_of(work.x).copy_(x)
    gate, up, down = (
        [
            adapted(
                backend,
                placed_matrix(random_matrix(name, rows=rows, columns=columns, seed=100 * part + expert)),
                deltas.get((PARTS[part], expert), ()),
            )
            for expert in range(experts)
        ]
        for part, (name, rows, columns) in enumerate(zip(names, (FFN, FFN, HIDDEN), (HIDDEN, HIDDEN, FFN), strict=True))
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
@pytest.mark.parametrize("names", [("F32", "F16", "BF16"), ("Q4_K", "Q6_K", "F16"), ("Q8_0", "Q8_0", "F32")])
def test_a_token_alone_is_the_token_in_a_batch(isa: str, names: tuple[str, ...], outlier_threshold: float) -> None:
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
@pytest.mark.parametrize("names", [("F32", "F16", "BF16"), ("Q4_K", "Q6_K", "F16"), ("Q8_0", "Q4_K", "F32")])
def test_experts_that_stay_in_their_file_give_the_same(isa: str, names: tuple[str, ...]) -> None:
    for tokens in (1, 40):
        x = random_values(tokens, HIDDEN, seed=tokens)
        packed, stored = (
            mixture(native(isa), x, experts=4, used=2, names=names, outlier_threshold=1.0, placed_matrix=each)
            for each in (lambda matrix: matrix, in_place)
        )
        assert torch.equal(stored, packed)
