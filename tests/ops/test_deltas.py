"""What adapters add to products: kernel against reference, against plain arithmetic, and bitwise laws of the kernel."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from mistralrs.ops.arena import Arena
from mistralrs.ops.backend import Backend, Epilogue
from mistralrs.ops.linear import AdapterUse, Delta, DeltaShape
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.workspace import Sizes, Workspace
from tests.ops import harness
from tests.ops.harness import (
    ISAS,
    SLOTS,
    LowRank,
    Normalization,
    Projection,
    adapted,
    adapted_step,
    decoded,
    for_every_isa,
    in_place,
    native,
    random_matrix,
    random_values,
    reference,
)
from tests.ops.test_moe import FFN, HIDDEN, mixture
from tests.tolerances import EXPERTS, PRODUCT

pytestmark = pytest.mark.native


def low_rank(
    rows: int, columns: int, rank: int, *, seed: int, type_: str = "F32", scale: float = 0.7, **vectors: torch.Tensor
) -> LowRank:
    a = random_matrix(type_, rows=rank, columns=columns, seed=seed)
    b = random_matrix(type_, rows=rows, columns=rank, seed=seed + 1)
    return LowRank(a=a, b=b, scale=scale, **vectors)


def random_uses(tokens: int, random: Random, *, most: int = 3) -> tuple[tuple[AdapterUse, ...], ...]:
    """Of each token up to ``most`` of the slots, in a common order, as the engine has them."""
    order = random.sample(range(SLOTS), SLOTS)
    picked = [set(random.sample(order, random.randrange(most + 1))) for _ in range(tokens)]
    return tuple(
        tuple(AdapterUse(slot, random.uniform(-1, 1)) for slot in order if slot in chosen) for chosen in picked
    )


def four_deltas(rows: int, columns: int, seed: int) -> tuple[LowRank | None, ...]:
    """One of every storage type and of ranks below, at and above a panel; one slot does not act on the matrix."""
    return (
        low_rank(rows, columns, 3, seed=seed, type_="F32", bias=random_values(rows, seed=seed)),
        low_rank(rows, columns, 16, seed=seed + 10, type_="F16", scale=-1.25),
        None,
        low_rank(rows, columns, 40, seed=seed + 20, type_="BF16"),
    )


def projection(epilogue: Epilogue, tokens: int, *, type_: str = "F32", seed: int = 1) -> Projection:
    rows = (64, 64) if epilogue == "gated" else (50, 64, 16)
    random = Random(seed)
    return Projection(
        matrices=tuple(random_matrix(type_, rows=r, columns=256, seed=seed + r, bias=r == 64) for r in rows),
        x=random_values(tokens, 256, seed=seed + 5),
        norm=Normalization(weight=1 + random_values(256, seed=seed) / 8),
        epilogue=epilogue,
        activation="gelu",
        scale=1.5,
        before=0.25,
        deltas=tuple(four_deltas(r, 256, seed + 7 * r) for r in rows),
        uses=random_uses(tokens, random),
    )


@for_every_isa
@pytest.mark.parametrize("epilogue", ["store", "add", "gated", "activate"])
@pytest.mark.parametrize("type_", ["F32", "F16", "Q6_K", "Q8_0"])
def test_kernel_equals_reference(isa: str, epilogue: Epilogue, type_: str) -> None:
    for tokens in (1, 2, 5, 8, 9, 21):
        op = projection(epilogue, tokens, type_=type_, seed=tokens)
        for result, expected in zip(op.run(native(isa)), op.run(reference()), strict=True):
            assert (result - expected).abs().max() <= PRODUCT * expected.abs().max()


def test_reference_is_the_plain_sum() -> None:
    op = projection("store", 7)
    x = random_values(7, 256, seed=6)
    for matrix, deltas, result in zip(op.matrices, op.deltas, op.run(reference()), strict=True):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * op.norm.weight  # type: ignore[union-attr]
        for token, uses in enumerate(op.uses):
            weight = decoded(matrix).double()
            bias = torch.tensor(matrix.bias or [0.0] * matrix.rows).double()
            for use in uses:
                delta = deltas[use.slot]
                if delta is None:
                    continue
                weight = weight + use.weight * delta.scale * decoded(delta.b).double() @ decoded(delta.a).double()
                bias = bias + use.weight * (0 if delta.bias is None else delta.bias.double())
            expected = 1.5 * (weight @ normed[token].double() + bias)
            assert (result[token] - expected).abs().max() <= 1e-5 * expected.abs().max()


@for_every_isa
@pytest.mark.parametrize("type_", ["F32", "Q4_K", "Q6_K"])
def test_a_token_alone_is_the_token_in_a_batch(isa: str, type_: str) -> None:
    """Bit for bit, whichever adapters act on its neighbours and whatever the number of threads."""
    for epilogue in ("store", "gated"):
        whole = projection(epilogue, 33, type_=type_)
        alone = [whole.only(token).run(native(isa)) for token in range(33)]
        random = Random(2)
        for count in (2, 3, 8, 9, 33):
            tokens = random.sample(range(33), count)
            together = whole.only(*tokens).run(native(isa, threads=random.choice((1, 2, 3))))
            for member, result in enumerate(together):
                for row, token in enumerate(tokens):
                    assert torch.equal(result[row], alone[token][member][0])


@for_every_isa
@pytest.mark.parametrize("type_", ["BF16", "Q8_0", "Q4_K"])
def test_few_rows_on_any_number_of_threads(isa: str, type_: str) -> None:
    """Bit for bit: one thread rounds the rows while the others multiply them with the adapters' matrices."""
    random = Random(11)
    for tokens in (1, 2, 4, 5, 8):
        base = projection("store", tokens, type_=type_, seed=tokens)
        some = tuple(sorted(random.sample(range(tokens), random.randint(1, tokens))))
        for norm in (base.norm, None):
            for indices in (None, some):
                op = replace(base, norm=norm, logits_indices=indices)
                expected = op.run(native(isa, threads=1))
                for threads in (2, 3, 2, 3):
                    assert all(map(torch.equal, op.run(native(isa, threads=threads)), expected))


@for_every_isa
def test_uses_up_to_the_limit_of_those_that_are_added_at_once(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit those of each token alone: up to 64 tokens with 64 uses in all, and more."""
    slots = 12
    monkeypatch.setattr(harness, "SLOTS", slots)
    backend, random = NativeBackend(threads=2, isa=isa), Random(6)
    ranks, types = (1, 3, 8, 16, 17, 40), ("F32", "F16", "BF16")
    matrices = tuple(random_matrix("Q8_0", rows=200, columns=256, seed=seed) for seed in (1, 2))
    deltas = tuple(
        tuple(
            low_rank(200, 256, ranks[slot % 6], seed=slot + 50 * member, type_=types[slot % 3]) for slot in range(slots)
        )
        for member in range(2)
    )
    for tokens, each in ((4, 8), (4, 9), (4, slots), (5, 3), (8, 8), (13, 5), (17, 2), (64, 1), (65, 1)):
        order = random.sample(range(slots), slots)
        uses = tuple(
            tuple(AdapterUse(order[(token + j) % slots], random.uniform(-1, 1)) for j in range(each))
            for token in range(tokens)
        )
        epilogue: Epilogue = "store" if tokens == 17 else "gated"
        op = Projection(
            matrices=matrices, x=random_values(tokens, 256, seed=3), epilogue=epilogue, activation="gelu",
            deltas=deltas, uses=uses,
        )  # fmt: skip
        alone = [op.only(token).run(backend) for token in range(tokens)]
        for member, (result, expected) in enumerate(zip(op.run(backend), op.run(reference()), strict=True)):
            assert (result - expected).abs().max() <= PRODUCT * expected.abs().max()
            for token in range(tokens):
                assert torch.equal(result[token], alone[token][member][0])


@for_every_isa
def test_deltas_on_a_base_that_stays_in_its_file_are_the_same(isa: str) -> None:
    for tokens in (1, 21):
        case = projection("gated", tokens, type_="Q4_K")
        stays = replace(case, matrices=tuple(map(in_place, case.matrices)))
        assert all(map(torch.equal, stays.run(native(isa)), case.run(native(isa))))


@for_every_isa
def test_tokens_without_uses_have_the_bits_of_a_model_without_adapters(isa: str) -> None:
    op = projection("store", 12, type_="Q4_K")
    plain = Projection(
        matrices=op.matrices, x=op.x, norm=op.norm, epilogue="store", activation="gelu", scale=1.5, before=0.25
    ).run(native(isa))
    for result, expected in zip(op.run(native(isa)), plain, strict=True):
        idle = [token for token, uses in enumerate(op.uses) if not any(use.slot != 2 for use in uses)]
        busy = [token for token in range(12) if token not in idle]
        assert idle
        assert busy
        assert torch.equal(result[idle], expected[idle])
        assert not torch.equal(result[busy], expected[busy])


@for_every_isa
def test_row_factors_multiply_the_product_without_the_bias(isa: str) -> None:
    matrix = random_matrix("F32", rows=50, columns=64, seed=3, bias=True)
    factor = 1 + random_values(50, seed=8) / 10
    dora = low_rank(50, 64, 8, seed=4, row_factor=factor)
    x = random_values(9, 64, seed=2)
    uses = tuple((AdapterUse(0),) if token % 2 else () for token in range(9))
    op = Projection(matrices=(matrix,), x=x, deltas=((dora,),), uses=uses)
    bias = torch.tensor(matrix.bias)
    adapted_rows = factor * (x @ (decoded(matrix) + 0.7 * decoded(dora.b) @ decoded(dora.a)).T) + bias
    plain_rows = x @ decoded(matrix).T + bias
    expected = torch.where((torch.arange(9) % 2 == 1)[:, None], adapted_rows, plain_rows)
    for backend in (native(isa), reference()):
        [result] = op.run(backend)
        assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()


@for_every_isa
def test_only_the_tokens_with_logits(isa: str) -> None:
    whole = projection("store", 10)
    picked = Projection(
        matrices=whole.matrices, x=whole.x, norm=whole.norm, scale=1.5, deltas=whole.deltas, uses=whole.uses,
        logits_indices=(3, 4, 9),
    )  # fmt: skip
    for backend in (native(isa), reference()):
        for result, everything in zip(picked.run(backend), whole.run(backend), strict=True):
            assert (result - everything[[3, 4, 9]]).abs().max() <= PRODUCT * everything.abs().max()


@for_every_isa
def test_scalings_of_each_token_and_slot(isa: str) -> None:
    """A scaling is a further factor on the use's weight."""
    matrix, x = random_matrix("F32", rows=32, columns=64, seed=3), random_values(6, 64, seed=2)
    deltas = four_deltas(32, 64, 5)
    scalings = random_values(6, 2, SLOTS, seed=9)

    def run(backend: Backend, uses: list[list[AdapterUse]], with_scalings: bool) -> torch.Tensor:
        arena = Arena(8192)
        args = adapted_step(uses)
        work = Workspace(_sizes(6, 64, 32))
        work.x.values[:] = x.flatten().numpy()
        if with_scalings:
            args.scalings = backend.vector(scalings.flatten().tolist())
            args.scalings = type(args.scalings)(args.scalings.span, (6, 2, SLOTS))
        op = backend.project([adapted(backend, matrix, deltas)], work.x, [work.ffn])
        backend.program([op], args)()
        del arena
        return torch.frombuffer(work.ffn.values, dtype=torch.float32).view(6, 32).clone()

    uses = [[AdapterUse(0, 0.5), AdapterUse(1), AdapterUse(3, 2.0)] for _ in range(6)]
    folded = [
        [AdapterUse(use.slot, use.weight * float(scalings[token, 0, use.slot])) for use in row]
        for token, row in enumerate(uses)
    ]
    for backend in (native(isa), reference()):
        expected = run(backend, folded, False)
        assert (run(backend, uses, True) - expected).abs().max() <= 1e-5 * expected.abs().max()


@for_every_isa
def test_embedding(isa: str) -> None:
    table = random_matrix("Q8_0", rows=40, columns=96, seed=1)
    deltas = (
        LowRank(a=random_matrix("F32", rows=40, columns=5, seed=2), b=random_matrix("F32", rows=96, columns=5, seed=3)),
        None,
    )
    ids = [3, 39, 0, 3, 17]
    uses = [[AdapterUse(0, 0.5)], [], [AdapterUse(1)], [AdapterUse(1), AdapterUse(0, -2.0)], [AdapterUse(0)]]
    weights = torch.tensor([0.5, 0, 0, -2.0, 1.0])
    expected = decoded(table)[ids] + weights[:, None] * decoded(deltas[0].a)[ids] @ decoded(deltas[0].b).T
    for backend in (native(isa), reference()):
        work = Workspace(_sizes(5, 96, 1))
        op = backend.embed(adapted(backend, table, deltas, lookup=True), work, rotaries=[], scale=3.0)
        backend.program([op], adapted_step(uses, ids=ids))()
        result = torch.frombuffer(work.x.values, dtype=torch.float32).view(5, 96)
        assert (result - 3 * expected).abs().max() <= 1e-5 * expected.abs().max()


@for_every_isa
def test_experts_and_router(isa: str) -> None:
    experts, used = 6, 2
    shapes = {"gate": (FFN, HIDDEN), "up": (FFN, HIDDEN), "down": (HIDDEN, FFN)}
    deltas = {
        (part, expert): four_deltas(*shape, 100 * expert + 31 * place)
        for place, (part, shape) in enumerate(shapes.items())
        for expert in range(experts)
        if (expert + place) % 3
    }
    deltas["router", 0] = four_deltas(experts, HIDDEN, 77)
    x, uses = random_values(40, HIDDEN, seed=4), random_uses(40, Random(4))

    def run(backend: Backend, picked: list[int]) -> torch.Tensor:
        return mixture(backend, x[picked], experts=experts, used=used, deltas=deltas, uses=[uses[t] for t in picked])

    whole = run(native(isa), list(range(40)))
    for tokens in (1, 3, 9, 40):
        some = Random(tokens).sample(range(40), tokens)
        result, expected = run(native(isa, threads=3), some), run(reference(), some)
        assert (result - expected).abs().max() <= EXPERTS * (expected.abs().max() + x.abs().max())
        assert torch.equal(result, whole[some])


@for_every_isa
@pytest.mark.parametrize("is_native", [False, True], ids=["reference", "native"])
def test_deltas_of_another_shape_are_refused(isa: str, is_native: bool) -> None:
    made: Backend = native(isa) if is_native else reference()
    table = made.delta_table(SLOTS, DeltaShape(32, 64))
    right = low_rank(32, 64, 4, seed=1).place(made)
    table.set(1, right)
    table.set(1, None)
    for wrong in (
        low_rank(32, 63, 4, seed=1),
        low_rank(31, 64, 4, seed=1),
        LowRank(a=random_matrix("F32", rows=4, columns=64, seed=1), b=random_matrix("F32", rows=32, columns=5, seed=1)),
        low_rank(32, 64, 4, seed=1, bias=torch.zeros(31)),
        low_rank(32, 64, 4, seed=1, row_factor=torch.zeros(33)),
    ):
        with pytest.raises(ValueError, match=r"expected|does not fit"):
            table.set(0, wrong.place(made))
    quantized = Delta(made.place(random_matrix("Q8_0", rows=4, columns=64, seed=1)), right.b)
    with pytest.raises(ValueError, match="deltas are stored as floats, not as Q8_0"):
        table.set(0, quantized)


def test_tables_of_one_backend_have_as_many_slots_as_its_steps() -> None:
    backend = NativeBackend(threads=1, isa=ISAS[0])
    matrix = random_matrix("F32", rows=32, columns=64, seed=3)
    with pytest.raises(ValueError, match="a table of 3 adapter slots does not fit others of 4"):
        [backend.delta_table(slots, DeltaShape(matrix.rows, matrix.columns)) for slots in (SLOTS, 3)]


def _sizes(tokens: int, hidden: int, ffn: int) -> Sizes:
    return Sizes(
        max_tokens=tokens, max_seqs=tokens, max_logits=1, max_blocks=1,
        hidden=hidden, q=1, kv=1, ffn=ffn, vocab=40, rotary=(), adapter_slots=SLOTS,
    )  # fmt: skip
