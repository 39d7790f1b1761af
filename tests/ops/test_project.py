"""The product of every storage type: kernels against the reference, and bitwise laws of the kernels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from random import Random
from typing import cast

import pytest
import torch

from mistralrs.ops.arena import Arena, buffers_bytes
from mistralrs.ops.backend import Activation, Epilogue
from mistralrs.ops.linear import Linear
from mistralrs.ops.reference_ops import round_to_int8
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES
from tests.buffers import tensor_of
from tests.ops.harness import (
    FLOATS,
    ISAS,
    Normalization,
    Projection,
    decoded,
    filled,
    for_every_isa,
    in_place,
    native,
    normed,
    random_matrix,
    random_values,
    reference,
    step_args,
)
from tests.tolerances import ACTIVATION, BFLOAT16, NORM, PAIRED_SUM, PAIRED_TYPES, PRODUCT

pytestmark = pytest.mark.native

ROWS = (1, 15, 16, 17, 48, 130)
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33)
THRESHOLDS = (math.inf, 1.0, 0.0)
TWO_MEMBERS = (("Q4_1", "Q8_0"), ("Q4_K", "Q6_K"), ("Q2_K", "Q4_K"), ("Q5_0", "F16"), ("F32", "BF16"), ("Q2_K", "Q4_0"))


def widths(name: str) -> tuple[int, ...]:
    """One block and several; of plain numbers also such as are no multiple of 32."""
    block = TYPES[name].block_len
    return (32, 33, 40, 100) if name in FLOATS else (block, 3 * block)


def magnitude(matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    """sum |w| |x| for each output, plus its bias: what rounding errors of a sum are in proportion to."""
    sums = x.abs() @ decoded(matrix).abs().T
    return sums if matrix.bias is None else sums + torch.tensor(matrix.bias).abs()


QUANTS = dict(zip(PAIRED_TYPES, (slice(16, 80), slice(16, 144), slice(16, 176)), strict=True))
"""The bytes of a block's integers, of the types whose minima are multiplied with int16 sums of columns."""


def rounding(matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    """What the products' rounding errors are at most."""
    errors = PRODUCT * magnitude(matrix, x)
    if (place := QUANTS.get(matrix.type.name)) is None:
        return errors
    blocks = torch.frombuffer(bytearray(matrix.data), dtype=torch.uint8).view(-1, matrix.type.block_bytes)
    blocks[:, place] = 0
    minima = decoded(replace(matrix, data=memoryview(blocks.numpy()).cast("B"))).abs()
    width = 16 if matrix.type.name == "Q2_K" else 32
    largest = 1.1 * x.view(len(x), -1, width).sum(-1).abs().amax(-1, keepdim=True)  # 1.1: of x before it is rounded
    return errors + PAIRED_SUM * largest * (minima.sum(-1) / width)


def is_paired(name: str, case: Projection, *, isa: str) -> bool:
    """Whether activations are rounded to bfloat16."""
    return name == "BF16" and isa in ("avx512bf16", "amx_int8") and case.outlier_threshold > 0


def assert_products_equal(
    case: Projection, results: list[torch.Tensor], expected: list[torch.Tensor], *, isa: str
) -> None:
    x = case.x if case.logits_indices is None else case.x[list(case.logits_indices)]
    for matrix, result, wanted in zip(case.matrices, results, expected, strict=True):
        allowed = rounding(matrix, x) + PRODUCT * abs(case.before)
        if is_paired(matrix.type.name, case, isa=isa):
            allowed = allowed + BFLOAT16 * magnitude(matrix, x)
        worst = ((result - wanted).abs() / allowed).max().item()
        assert worst <= 1, f"{worst:.1f} times the tolerance: {matrix.name} {matrix.rows} x {matrix.columns}, {len(x)}"


@for_every_isa
@pytest.mark.parametrize("name", TYPES)
def test_kernel_equals_twin(isa: str, name: str) -> None:
    """Every row count, each with two draws of width, token count and refinement."""
    random = Random(f"{isa} {name}")
    for number, rows in enumerate(ROWS * 2):
        columns, tokens, outlier_threshold = (
            random.choice(widths(name)),
            random.choice(TOKENS),
            random.choice(THRESHOLDS),
        )
        matrix = random_matrix(
            name, rows=rows, columns=columns, seed=number, bias=number % 3 == 1, ordered=number % 2 == 1
        )
        case = Projection(
            matrices=(matrix,), x=random_values(tokens, columns, seed=number), outlier_threshold=outlier_threshold
        )
        assert_products_equal(case, case.run(native(isa)), case.run(reference()), isa=isa)


@for_every_isa
@pytest.mark.parametrize("name", TYPES)
def test_products_of_a_matrix_that_stays_in_its_file_are_the_same(isa: str, name: str) -> None:
    """To the bit, for every way in which a panel meets tiles: one of few tokens, some, and more than are near."""
    for seed, (rows, tokens) in enumerate(((130, 1), (33, 3), (17, 8), (70, 48))):
        gate, up = (
            random_matrix(name, rows=rows, columns=widths(name)[-1], seed=each, ordered=each % 2 == 1, bias=each > 6)
            for each in (2 * seed, 2 * seed + 1)
        )
        x = random_values(tokens, gate.columns, seed=seed)
        for epilogue, outlier_threshold in (("gated", 1.0), ("store", 0.0)):
            case = Projection(
                matrices=(gate, up), x=x, epilogue=cast(Epilogue, epilogue), outlier_threshold=outlier_threshold
            )
            expected = case.run(native(isa))
            for matrices in ((in_place(gate), in_place(up)), (gate, in_place(up))):
                found = replace(case, matrices=matrices).run(native(isa))
                assert all(map(torch.equal, found, expected)), (rows, tokens, epilogue)


@pytest.mark.slow
@for_every_isa
@pytest.mark.parametrize("name", TYPES)
def test_kernel_equals_twin_in_every_size(isa: str, name: str) -> None:
    for seed, (rows, columns, tokens, outlier_threshold) in enumerate(product(ROWS, widths(name), TOKENS, THRESHOLDS)):
        matrix = random_matrix(name, rows=rows, columns=columns, seed=seed)
        case = Projection(
            matrices=(matrix,), x=random_values(tokens, columns, seed=seed), outlier_threshold=outlier_threshold
        )
        assert_products_equal(case, case.run(native(isa)), case.run(reference()), isa=isa)


@for_every_isa
@pytest.mark.parametrize("outlier_threshold", THRESHOLDS)
@pytest.mark.parametrize(
    "names",
    [
        ("Q4_1", "Q8_0"),
        ("Q4_K", "Q4_K", "Q6_K"),
        ("Q4_K", "Q8_0"),
        ("Q5_0", "F16", "Q5_1"),
        ("Q3_K", "BF16"),
        ("F32", "F16", "BF16"),
    ],
)
@pytest.mark.parametrize("epilogue", ["store", "add"])
def test_members_of_different_types_and_heights(
    isa: str, names: tuple[str, ...], epilogue: Epilogue, outlier_threshold: float
) -> None:
    matrices = tuple(
        random_matrix(name, rows=rows, columns=512, seed=rows, bias=rows == 48, ordered=rows == 17)
        for name, rows in zip(names, (48, 17, 130), strict=False)
    )
    for tokens in (1, 5, 9):
        x = random_values(tokens, 512, seed=tokens)
        case = Projection(matrices=matrices, x=x, epilogue=epilogue, outlier_threshold=outlier_threshold, before=0.75)
        assert_products_equal(case, case.run(native(isa)), case.run(reference()), isa=isa)


@for_every_isa
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_activations(isa: str, activation: Activation) -> None:
    """The matrix is the identity, so that the outputs are the values of the activation."""
    identity = torch.eye(32)
    matrix = replace(
        random_matrix("F32", rows=32, columns=32, seed=1), data=identity.view(torch.uint8).numpy().data.cast("B")
    )
    x = torch.linspace(-30, 30, 64 * 32).view(64, 32)
    case = Projection(matrices=(matrix,), x=x, epilogue="activate", activation=activation)
    [result], [expected] = case.run(native(isa)), case.run(reference())
    assert ((result - expected).abs() <= ACTIVATION * x.abs() + 1e-30).all()


@for_every_isa
@pytest.mark.parametrize("outlier_threshold", THRESHOLDS)
@pytest.mark.parametrize("names", TWO_MEMBERS)
def test_gated(isa: str, names: tuple[str, str], outlier_threshold: float) -> None:
    """act(first) * second, where an error of one counts as often as the other is large."""
    for tokens, rows in ((1, 17), (4, 48), (9, 15)):
        first, second = (random_matrix(name, rows=rows, columns=256, seed=seed) for seed, name in enumerate(names))
        x = random_values(tokens, 256, seed=rows)
        x = x.bfloat16().float() if "BF16" in names else x  # which avx512bf16 would round
        case = Projection(matrices=(first, second), x=x, epilogue="gated", outlier_threshold=outlier_threshold)
        a, b = replace(case, epilogue="store").run(reference())
        gate = torch.nn.functional.silu(a)
        allowed = 1.1 * (rounding(first, x) * b.abs() + rounding(second, x) * gate.abs())
        [result] = case.run(native(isa))
        assert ((result - gate * b).abs() <= allowed + ACTIVATION * (a * b).abs()).all()
        [expected] = case.run(reference())
        assert torch.equal(expected, gate * b)


@for_every_isa
def test_only_the_rows_that_are_asked_for(isa: str) -> None:
    matrix = random_matrix("Q4_1", rows=130, columns=96, seed=5)
    x = random_values(9, 96, seed=6)
    for rows in ((8,), (0, 3, 4, 8), tuple(range(9))):
        case = Projection(matrices=(matrix,), x=x, outlier_threshold=0.0, logits_indices=rows)
        results = case.run(native(isa))
        assert_products_equal(case, results, case.run(reference()), isa=isa)
        assert torch.equal(results[0], replace(case.only(*rows), logits_indices=None).run(native(isa))[0])
    nothing = Projection(matrices=(matrix,), x=x, logits_indices=(), before=0.25)
    assert (nothing.run(native(isa))[0] == 0.25).all()


@for_every_isa
def test_soft_cap(isa: str) -> None:
    matrix = random_matrix("F32", rows=33, columns=64, seed=1)
    x = 20 * random_values(5, 64, seed=2)
    case = Projection(matrices=(matrix,), x=x, softcap=30.0)
    [result], [expected] = case.run(native(isa)), case.run(reference())
    assert result.abs().max() <= 30
    assert ((result - expected).abs() <= rounding(matrix, x) + 30 * ACTIVATION).all()


@for_every_isa
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_scale(isa: str, softcap: float) -> None:
    """A power of two, so that the product that is scaled is exactly that; it is scaled before the cap and the sum."""
    matrix = random_matrix("Q8_0", rows=33, columns=64, seed=1)
    plain = Projection(matrices=(matrix,), x=random_values(5, 64, seed=2))
    scaled = replace(plain, scale=0.125, softcap=softcap, epilogue="add", before=0.5)
    for backend in (native(isa), reference()):
        [result], [product] = scaled.run(backend), plain.run(backend)
        expected = 0.5 + (0.125 * product if not softcap else softcap * torch.tanh(0.125 * product / softcap))
        assert (result - expected).abs().max() <= ACTIVATION * (1 + softcap)
        assert softcap or torch.equal(result, expected)


@for_every_isa
@pytest.mark.parametrize("columns", [32, 96, 100, 576])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm(isa: str, kind: str, columns: int) -> None:
    """The norm itself within its tolerance; then norm and product are exactly the product of what the norm gives."""
    x = 3 * random_values(9, columns, seed=columns) + 0.5
    weight = 1 + random_values(columns, seed=1) / 8
    norm = (
        Normalization(weight=weight)
        if kind == "rms"
        else Normalization(weight=weight, bias=random_values(columns, seed=2), kind="layer")
    )
    values, expected = normed(native(isa), x, norm), normed(reference(), x, norm)
    assert ((values - expected).abs() <= NORM * expected.abs().amax(-1, keepdim=True)).all()
    for name in ("F32", "Q8_0") if columns % 32 == 0 else ("F16",):
        for outlier_threshold in THRESHOLDS:
            case = Projection(
                matrices=(random_matrix(name, rows=48, columns=columns, seed=3),),
                x=x,
                norm=norm,
                outlier_threshold=outlier_threshold,
            )
            apart = replace(case, x=values, norm=None)
            [result] = case.run(native(isa))
            assert torch.equal(result, apart.run(native(isa))[0])
            assert_products_equal(apart, [result], apart.run(reference()), isa=isa)


@for_every_isa
@pytest.mark.parametrize("name", TYPES)
def test_a_token_alone_is_the_token_in_a_batch(isa: str, name: str) -> None:
    """Bit for bit, at every batch size, whoever its neighbours are."""
    columns = widths(name)[-1]
    random = Random(name)
    for outlier_threshold in THRESHOLDS:
        case = Projection(
            matrices=(random_matrix(name, rows=48, columns=columns, seed=1, bias=True),),
            x=random_values(33, columns, seed=2),
            norm=Normalization(weight=1 + random_values(columns, seed=3) / 8),
            outlier_threshold=outlier_threshold,
        )
        [alone] = [torch.cat([case.only(token).run(native(isa))[0] for token in range(33)])]
        assert torch.equal(case.run(native(isa))[0], alone)
        for count in (2, 3, 4, 5, 7, 8, 9, 16):
            tokens = random.sample(range(33), count)
            assert torch.equal(case.only(*tokens).run(native(isa))[0], alone[tokens]), (outlier_threshold, count)


@for_every_isa
@pytest.mark.parametrize("name", sorted(FLOATS))
@pytest.mark.parametrize("columns", [3, 40, 515])
def test_rows_alone_are_the_rows_beside_others(isa: str, name: str, columns: int) -> None:
    """Bit for bit: panels of 16 rows are multiplied three, two or one at a time, with few tokens and with many."""
    matrix = random_matrix(name, rows=130, columns=columns, seed=1)
    for tokens in (1, 2, 4, 8, 12, 45):
        whole = Projection(matrices=(matrix,), x=random_values(tokens, columns, seed=tokens))
        [expected] = whole.run(native(isa, threads=1))
        for rows in (16, 32, 48, 80):
            data = matrix.data[: rows * matrix.type.row_bytes(columns)]
            case = replace(whole, matrices=(replace(matrix, rows=rows, data=data),))
            assert torch.equal(case.run(native(isa, threads=1))[0], expected[:, :rows]), (tokens, rows)


@for_every_isa
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0"])
def test_more_panels_than_stay_unpacked_at_once(isa: str, name: str) -> None:
    """Many tokens pass over a few unpacked panels at a time; four tokens read the panels as they are packed."""
    columns, tokens = 8192, 41
    case = Projection(
        matrices=(random_matrix(name, rows=200, columns=columns, seed=1),),
        x=random_values(tokens, columns, seed=2),
        outlier_threshold=1.0,
    )
    backend = native(isa, threads=1)
    pieces = [case.only(*range(start, min(start + 4, tokens))).run(backend)[0] for start in range(0, tokens, 4)]
    assert torch.equal(case.run(backend)[0], torch.cat(pieces))


@for_every_isa
@pytest.mark.parametrize(("name", "columns"), [("Q4_K", 2816), ("Q8_0", 1472), ("Q4_1", 2464)])
@pytest.mark.parametrize("epilogue", ["store", "add", "gated"])
def test_few_tokens_with_runs_of_large_panels(isa: str, name: str, columns: int, epilogue: Epilogue) -> None:
    """A thread takes 35 of 69 panels of 24 KB at a time, which are a whole run and a part of one; of gate and up fewer.
    One to four tokens have the bits of a batch of eight, which knows no runs."""
    matrices = tuple(random_matrix(name, rows=1100, columns=columns, seed=seed, bias=True) for seed in (1, 2))
    case = Projection(
        matrices=matrices if epilogue == "gated" else matrices[:1],
        x=random_values(8, columns, seed=3),
        epilogue=epilogue,
        outlier_threshold=1.0,
        before=0.5,
    )
    backend = native(isa, threads=1)
    [expected] = case.run(backend)
    for tokens in ((0,), (1, 2), (3, 4, 5), (4, 5, 6, 7)):
        assert torch.equal(case.only(*tokens).run(backend)[0], expected[list(tokens)]), tokens


@for_every_isa
@pytest.mark.parametrize("names", TWO_MEMBERS)
@pytest.mark.usefixtures("distance")
def test_threads_do_not_matter(isa: str, names: tuple[str, str]) -> None:
    """Bit for bit with 1, 2 and 3 threads, in sizes that are cut into many pieces; some rows begin no cache line."""
    epilogues: tuple[Epilogue, ...] = ("store", "add", "gated", "activate")
    for tokens, epilogue, rows in product((1, 7, 40), epilogues, (400, 387)):
        matrices = tuple(random_matrix(name, rows=rows, columns=512, seed=seed) for seed, name in enumerate(names))
        norm = Normalization(weight=1 + random_values(512, seed=3) / 8)
        x = random_values(tokens, 512, seed=tokens)
        case = Projection(matrices=matrices, x=x, norm=norm, epilogue=epilogue, outlier_threshold=0.0, before=0.5)
        first, *others = [case.run(native(isa, threads=threads)) for threads in (1, 2, 3)]
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@for_every_isa
@pytest.mark.parametrize("names", [("Q4_1", "Q4_1"), ("Q6_K", "F16")])
def test_long_prompts_in_blocks_of_tokens(isa: str, names: tuple[str, str]) -> None:
    """Bit for bit with 1, 2 and 3 threads, which cut 410 tokens into as many blocks."""
    matrices = tuple(random_matrix(name, rows=90, columns=256, seed=seed) for seed, name in enumerate(names))
    for epilogue in ("store", "gated") if names[0] == names[1] else ("add",):
        case = Projection(
            matrices=matrices, x=random_values(410, 256, seed=5), epilogue=epilogue, outlier_threshold=1.25
        )
        first, *others = [case.run(native(isa, threads=threads)) for threads in (1, 2, 3)]
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.skipif(len(ISAS) < 2, reason="this machine runs one instruction set")
@pytest.mark.parametrize("name", TYPES)
def test_instruction_sets_agree(name: str) -> None:
    columns = widths(name)[-1]
    for outlier_threshold in THRESHOLDS:
        x = random_values(9, columns, seed=4)
        case = Projection(
            matrices=(random_matrix(name, rows=130, columns=columns, seed=3),), x=x, outlier_threshold=outlier_threshold
        )
        first, *others = [case.run(native(isa)) for isa in ISAS]
        for isa, other in zip(ISAS[1:], others, strict=True):
            assert_products_equal(case, other, first, isa=ISAS[0] if name == "BF16" else isa)


@pytest.mark.skipif("avx512bf16" not in ISAS, reason="this machine does not multiply bfloat16")
@pytest.mark.parametrize("columns", [1, 2, 31, 96, 515])
def test_bfloat16_weights_multiply_bfloat16(columns: int) -> None:
    """Bit for bit as rounded before, unless all activations are wanted exact."""
    matrix = random_matrix("BF16", rows=37, columns=columns, seed=1)
    for tokens in (1, 2, 3, 5, 8, 11):
        x = random_values(tokens, columns, seed=tokens)
        exact = Projection(matrices=(matrix,), x=x, outlier_threshold=0.0)
        rounded = replace(exact, outlier_threshold=1.5)
        before = replace(rounded, x=x.bfloat16().float())
        [result], [same] = rounded.run(native("avx512bf16")), before.run(native("avx512bf16"))
        assert torch.equal(result, same)
        for case in (before, exact):
            [result], [wanted] = case.run(native("avx512bf16")), case.run(reference())
            assert ((result - wanted).abs() <= rounding(matrix, case.x)).all()


@pytest.mark.skipif(
    "amx_int8" not in ISAS, reason="this machine or build does not run amx_int8; `make cross` emulates it"
)
@pytest.mark.parametrize("name", TYPES)
def test_tiles_have_the_bits_of_vectors(name: str) -> None:
    """Of as many rows as a thread multiplies side by side, and of blocks that are whole and not."""
    for columns in (*widths(name), 3 * widths(name)[-1]):
        matrix = random_matrix(name, rows=150, columns=columns, seed=3)
        for tokens in (17, 24, 43):
            for outlier_threshold in THRESHOLDS:
                x = random_values(tokens, columns, seed=tokens)
                case = Projection(matrices=(matrix,), x=x, outlier_threshold=outlier_threshold)
                [result], [wanted] = (case.run(native(isa, threads=1)) for isa in ("amx_int8", "avx512bf16"))
                assert torch.equal(result, wanted)


@for_every_isa
def test_rounding_is_that_of_the_definition(isa: str) -> None:
    """Whole multiples of a half step are rounded to even, by kernel and reference alike; groups of zeros stay zero."""
    x = torch.arange(-127, 129).float().view(8, 32) / 2
    x[3] = 0
    x[:, 0] = torch.where(x[:, 0] == 0, 0, 127.0)
    x[3, 0] = 0
    ones = replace(random_matrix("Q8_0", rows=32, columns=32, seed=1), data=_identity_q8_0())
    case = Projection(matrices=(ones,), x=x)
    [result], [expected] = case.run(native(isa)), case.run(reference())
    assert torch.equal(result, expected)
    assert torch.equal(result, torch.round(x))


@for_every_isa
def test_outliers_have_a_term_of_their_own(isa: str) -> None:
    """Quads above so many times their row's average leave their group as it is without them, each row for itself."""
    x = random_values(9, 128, seed=8).clamp(-0.9, 0.9)
    x[:, ::32] = 1
    x[:, 68:72] = 0
    x[:4, 70] = 40  # the average of the largest values is 10.75: 3.7 times as much
    x[4:, 70] = 1.5  # 1.125: 1.3 times as much
    rounded = round_to_int8(x, 2.0)
    outliers = torch.zeros_like(x)
    outliers[:4, 70] = 40
    torch.testing.assert_close(rounded, round_to_int8(x - outliers, math.inf) + outliers, rtol=1e-6, atol=0)
    assert (rounded - x).abs().max() < 1 / 127
    matrix = random_matrix("Q8_0", rows=48, columns=128, seed=2)
    case = Projection(matrices=(matrix,), x=x, outlier_threshold=2.0)
    assert_products_equal(case, case.run(native(isa)), [rounded @ decoded(matrix).T], isa=isa)


@for_every_isa
@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_outliers_everywhere(isa: str, name: str) -> None:
    """Every quad has a coarse term, in every place of a block."""
    columns = 3 * TYPES[name].block_len
    x = random_values(13, columns, seed=5)
    case = Projection(matrices=(random_matrix(name, rows=33, columns=columns, seed=1),), x=x, outlier_threshold=1e-6)
    assert_products_equal(case, case.run(native(isa)), case.run(reference()), isa=isa)
    alone = torch.cat([case.only(token).run(native(isa))[0] for token in range(13)])
    assert torch.equal(case.run(native(isa))[0], alone)


@for_every_isa
@pytest.mark.parametrize(
    "names",
    [
        ("Q2_K",),
        ("Q3_K",),
        ("Q4_K",),
        ("Q5_K",),
        ("Q6_K",),
        ("Q4_1",),
        ("Q8_0",),
        ("Q4_K", "Q4_0"),
        ("Q8_0", "Q6_K", "Q5_1"),
    ],
)
def test_outliers_of_few_tokens_and_of_many(isa: str, names: tuple[str, ...]) -> None:
    """Outliers stand by token, or by 256 columns where a K type reads them too: the sums are the same."""
    columns, random = 3 * 256, Random(str(names))
    matrices = tuple(random_matrix(name, rows=100, columns=columns, seed=1) for name in names)
    for tokens in (4, 8, 13, 16):
        x = random_values(tokens, columns, seed=tokens).clamp(-0.9, 0.9)
        for token in x:
            outliers = random.sample(range(0, columns, 4), random.choice((0, 1, 6, 40)))  # in 192 quads
            token[torch.tensor(outliers, dtype=torch.long)] = 100.0
        case = Projection(matrices=matrices, x=x, outlier_threshold=0.75)
        results = case.run(native(isa))
        assert_products_equal(case, results, case.run(reference()), isa=isa)
        for member, result in enumerate(results):
            alone = torch.cat([case.only(token).run(native(isa))[member] for token in range(tokens)])
            assert torch.equal(result, alone), (tokens, names[member])


def _identity_q8_0() -> memoryview:
    rows = torch.zeros(32, 34, dtype=torch.uint8)
    rows[:, :2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
    rows[torch.arange(32), 2 + torch.arange(32)] = 1
    return rows.numpy().data.cast("B")


@for_every_isa
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "F16"])
@pytest.mark.parametrize("outlier_threshold", THRESHOLDS)
def test_values_that_are_no_numbers_stay_in_their_token(isa: str, name: str, outlier_threshold: float) -> None:
    """Broken weights make activations infinite or NaN; the tokens beside them have the bits that they have alone."""
    columns = 2 * TYPES[name].block_len if name not in FLOATS else 64
    x = random_values(7, columns, seed=3)
    broken = {1: math.nan, 3: math.inf, 4: -math.inf}
    for token, value in broken.items():
        x[token, token::5] = value
    case = Projection(
        matrices=(random_matrix(name, rows=33, columns=columns, seed=1),), x=x, outlier_threshold=outlier_threshold
    )
    [out] = case.run(native(isa))
    for token in range(len(x)):
        [alone] = case.only(token).run(native(isa))
        if token not in broken:
            assert torch.equal(out[token], alone[0])


@for_every_isa
def test_a_program_stops_when_it_is_cancelled(isa: str) -> None:
    matrix, x = random_matrix("F32", rows=33, columns=64, seed=1), random_values(2, 64, seed=2)
    for backend in (native(isa), reference()):
        arena = Arena(buffers_bytes((2, 33), (2, 64)))
        out = filled(arena, torch.zeros(2, 33))
        args = step_args(tokens=2)
        program = backend.program([backend.project([Linear(backend.place(matrix))], filled(arena, x), [out])], args)
        args.cancel_flag.value = 1
        program()
        assert not tensor_of(out).any()
        args.cancel_flag.value = 0
        program()
        assert tensor_of(out).any()
