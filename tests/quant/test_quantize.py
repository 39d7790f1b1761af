"""The quantizers against llama.cpp's, whose errors on the same weights are golden data, and against one another."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from mistralrs_kernels import cpu
from numpy.typing import NDArray

from mistralrs.errors import UsageError
from mistralrs.loading.gguf_file import RawTensor
from mistralrs.quant.dequantize import dequantize
from mistralrs.quant.quantize import ISQ_TYPES, isq_type, target_of
from mistralrs.quant.scale_search import quantize_blocks
from mistralrs.quant.types import TYPES, QuantType
from tests.quant import weights
from tests.quant.weights import Floats, relative_error

GOLDEN: dict[str, dict[str, float]] = json.loads(
    (Path(__file__).parent / "golden" / "quantizer_errors.json").read_text()
)["errors"]
"""Set of weights -> type -> the relative error of llama.cpp's quantizer; see scripts/make_quantizer_golden.py."""

IMPLEMENTATIONS_APART = 3e-3
"""Relative difference between the errors of the kernel and of the reference implementation. They add in another order,
so that each may choose another of two equally good scales, and 64 blocks do not average that out."""

Blocks = NDArray[np.uint8]

every_type = pytest.mark.parametrize("type_", ISQ_TYPES.values(), ids=lambda type_: type_.name)
native = pytest.mark.native


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    try:
        lib = cpu.load()
    except cpu.KernelError as error:
        pytest.skip(f"the compiled kernels are not here: {error}")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    lib.mrs_quantize.argtypes = [ctypes.c_int, pointer, integer, integer, pointer, pointer]
    lib.mrs_quantize_on.argtypes = [ctypes.c_int, *lib.mrs_quantize.argtypes]
    return lib


@pytest.fixture
def pool(library: ctypes.CDLL) -> Iterator[int]:
    made = library.mrs_pool_acquire(3)
    yield made
    library.mrs_pool_release(made)


def kernel(library: ctypes.CDLL, type_: QuantType, rows: Floats, *, pool: int | None = None) -> Blocks:
    rows = np.ascontiguousarray(rows)
    blocks = np.zeros((len(rows), type_.row_bytes(rows.shape[1])), np.uint8)
    assert library.mrs_quantize(type_.ggml_id, rows.ctypes.data, *rows.shape, blocks.ctypes.data, pool) == 0
    return blocks


def reference(type_: QuantType, rows: Floats) -> Blocks:
    blocks: Blocks = quantize_blocks(type_, torch.from_numpy(np.ascontiguousarray(rows))).numpy()
    return blocks


def decoded(type_: QuantType, blocks: Blocks) -> Floats:
    weights: Floats = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type_.name])
    return weights


def odd_rows() -> Floats:
    """Unusual rows for the search: (13, 512)."""
    rows = weights.gaussian_rows(13, columns=512, seed=3) / 0.02
    rows[0] = 0
    rows[1] = 1
    rows[2] = -3e-5
    rows[3] *= 1e-7
    rows[4] *= 1e-30
    rows[5] *= 10000
    rows[6] = np.abs(rows[6]) + 5
    rows[7] = -np.abs(rows[7]) - 100
    rows[8, ::7] = 0
    rows[9] = rows[9].round()
    rows[10] *= 1e-40
    rows[11, :256] = 0
    rows[12, 5] = 65504
    return rows.clip(-65504, 65504)


@native
@every_type
@pytest.mark.parametrize("name", weights.generated())
def test_error_is_at_most_that_of_llama_cpp(library: ctypes.CDLL, type_: QuantType, name: str) -> None:
    rows = weights.generated()[name]
    assert relative_error(rows, decoded(type_, kernel(library, type_, rows))) <= GOLDEN[name][type_.name]


@native
@every_type
@pytest.mark.parametrize("name", weights.MODEL_TENSORS)
def test_error_on_a_model_is_at_most_that_of_llama_cpp(
    library: ctypes.CDLL, default_model: Path, type_: QuantType, name: str
) -> None:
    rows = weights.of_model(default_model, _decode)[name]
    assert relative_error(rows, decoded(type_, kernel(library, type_, rows))) <= GOLDEN[name][type_.name]


def _decode(tensor: RawTensor) -> Floats:
    rows, columns = tensor.shape
    data = torch.frombuffer(tensor.data, dtype=torch.uint8).reshape(rows, -1)
    taken = data[: -(-256 * 768 // columns)]
    result: Floats = dequantize(tensor.type, taken, columns).numpy()
    return result


@every_type
@pytest.mark.parametrize("name", weights.generated())
def test_error_of_the_reference_is_at_most_that_of_llama_cpp(type_: QuantType, name: str) -> None:
    rows = weights.generated()[name]
    assert relative_error(rows, decoded(type_, reference(type_, rows))) <= GOLDEN[name][type_.name]


@native
@every_type
def test_kernel_and_reference_are_equally_good(library: ctypes.CDLL, type_: QuantType) -> None:
    rows = weights.generated()["student"]
    errors = [
        relative_error(rows, decoded(type_, blocks))
        for blocks in (kernel(library, type_, rows), reference(type_, rows))
    ]
    assert errors[0] == pytest.approx(errors[1], rel=IMPLEMENTATIONS_APART)


@native
@every_type
def test_every_instruction_set_gives_the_same_bytes(library: ctypes.CDLL, type_: QuantType) -> None:
    for rows in (*weights.generated().values(), odd_rows()):
        expected = kernel(library, type_, rows)
        for isa in cpu.tables(by_name=True):
            blocks = np.zeros_like(expected)
            arguments = (type_.ggml_id, rows.ctypes.data, *rows.shape, blocks.ctypes.data, None)
            assert library.mrs_quantize_on(cpu.ISAS.index(isa), *arguments) == 0
            np.testing.assert_array_equal(blocks, expected, err_msg=isa)


@native
@every_type
def test_a_row_alone_is_as_among_others_and_on_threads(library: ctypes.CDLL, type_: QuantType, pool: int) -> None:
    rows = weights.student_rows(67, columns=1024, seed=4)
    blocks = kernel(library, type_, rows)
    np.testing.assert_array_equal(kernel(library, type_, rows, pool=pool), blocks)
    for row in (0, 13, 66):
        np.testing.assert_array_equal(kernel(library, type_, rows[row : row + 1]), blocks[row : row + 1])


@every_type
def test_odd_rows_by_the_reference(type_: QuantType) -> None:
    assert_odd_rows_are_kept(type_, decoded(type_, reference(type_, odd_rows())))


@native
@every_type
def test_odd_rows_by_the_kernel(library: ctypes.CDLL, type_: QuantType) -> None:
    assert_odd_rows_are_kept(type_, decoded(type_, kernel(library, type_, odd_rows())))


def assert_odd_rows_are_kept(type_: QuantType, result: Floats) -> None:
    rows = odd_rows()
    assert np.isfinite(result).all()
    assert not result[0].any()
    assert not result[4].any()  # far below the smallest half
    assert not result[10].any()
    assert not result[11, :256].any()
    for row in (1, 2, 5, 6, 7, 8, 9, 11, 12):  # no harder than normal weights
        assert relative_error(rows[row], result[row]) <= GOLDEN["gaussian"][type_.name], row
    assert relative_error(rows[3], result[3]) < 0.35  # near the smallest half


@native
def test_the_kernel_refuses(library: ctypes.CDLL) -> None:
    rows, blocks = np.zeros((2, 512), np.float32), np.zeros(4096, np.uint8)

    def status(type_: QuantType, columns: int) -> int:
        return int(library.mrs_quantize(type_.ggml_id, rows.ctypes.data, 2, columns, blocks.ctypes.data, None))

    assert status(TYPES["F16"], 512) == -1
    assert status(TYPES["Q4_K"], 128) == -1
    assert status(TYPES["Q4_0"], 48) == -1
    assert status(TYPES["Q4_K"], 0) == 0
    for type_ in ISQ_TYPES.values():
        for value in (np.nan, np.inf, -np.inf, 65520.0):
            rows[1, 511] = value
            assert status(type_, 512) == -2
        rows[1, 511] = -65504
        assert status(type_, 512) == 0


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("F16", torch.zeros(2, 256), "F16"),
        ("Q4_K", torch.zeros(2, 128), "multiple of 256"),
        ("Q4_0", torch.zeros(256), "float32 rows"),
        ("Q4_0", torch.zeros(2, 256, dtype=torch.bfloat16), "bfloat16"),
        ("Q8_0", torch.full((1, 32), float("nan")), "not finite"),
        ("Q8_0", torch.full((1, 32), 65520.0), "beyond 65504"),
    ],
)
def test_the_reference_refuses(name: str, rows: torch.Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        quantize_blocks(TYPES[name], rows)


def test_names_on_the_command_line() -> None:
    assert isq_type("q4_k") is TYPES["Q4_K"]
    assert isq_type("Q8_0") is TYPES["Q8_0"]
    with pytest.raises(UsageError, match="'f16'") as caught:
        isq_type("f16")
    assert caught.value.hint is not None
    assert "q8_0, q6_k, q5_k, q4_k" in caught.value.hint


@every_type
def test_rows_that_split_get_the_requested_type(type_: QuantType) -> None:
    target = target_of(type_, 1536)
    assert target.type is type_
    assert target.reason is None


@every_type
def test_rows_that_do_not_split_get_the_smallest_type_that_is_as_good(type_: QuantType) -> None:
    rows = weights.generated()["gaussian"]
    errors = {
        name: relative_error(rows, decoded(TYPES[name], reference(TYPES[name], rows))) for name in GOLDEN["gaussian"]
    }
    as_good = [t for t in ISQ_TYPES.values() if t.block_len == 32 and errors[t.name] <= errors[type_.name]]
    target = target_of(type_, 576)
    assert target.type is (type_ if type_.block_len == 32 else min(as_good, key=lambda t: t.block_bytes))
    if target.type is not type_:
        assert target.reason is not None
        assert target.type.name in target.reason
        assert "576" in target.reason


@every_type
def test_rows_that_split_in_nothing_stay(type_: QuantType) -> None:
    target = target_of(type_, 100)
    assert target.type is None
    assert target.reason is not None
    assert "100" in target.reason
