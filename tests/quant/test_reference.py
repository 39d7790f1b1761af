"""The reference decoders against those of the `gguf` package, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from mistralrs.quant.dequantize import DECODERS, dequantize
from mistralrs.quant.types import BY_GGML_ID, DECODED, EXPANDED, I8, TYPES
from tests.quant.blocks import HALVES, odd_rows, sane_rows

TODAY = {type_.name: type_ for type_ in BY_GGML_ID.values()}
ALL = TYPES | EXPANDED | DECODED


@pytest.mark.parametrize("name", TODAY)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (7, 3), (40, 5)])
def test_equals_gguf_bit_for_bit(name: str, rows: int, blocks: int) -> None:
    type_ = TODAY[name]
    columns = blocks * 256
    data = odd_rows(type_, rows=rows, columns=columns, seed=type_.ggml_id)
    with np.errstate(over="ignore"):  # MXFP4 reaches beyond float32
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])

    decoded = dequantize(type_, torch.from_numpy(data), columns=columns).numpy()

    assert decoded.dtype == np.float32
    assert decoded.shape == expected.shape
    # Processors may choose any bit pattern of a NaN; random F32, F16 and BF16 weights have some.
    numbers = ~np.isnan(expected)
    assert numbers.mean() > 0.95
    np.testing.assert_array_equal(np.isnan(decoded), ~numbers)
    np.testing.assert_array_equal(decoded[numbers].view(np.uint32), expected[numbers].view(np.uint32))


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_a_scale_that_is_not_finite_is_decoded_without_a_warning(name: str) -> None:
    """It gives weights that are not finite, whose error names the tensor."""
    type_ = TYPES[name]
    data = torch.full((1, type_.row_bytes(256) // 2), torch.inf, dtype=torch.float16).view(torch.uint8)
    assert not dequantize(type_, data, columns=256).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_result_is_new_memory(name: str) -> None:
    type_ = ALL[name]
    data = torch.zeros(2, type_.row_bytes(256), dtype=torch.uint8)
    decoded = dequantize(type_, data, columns=256)
    before = decoded.clone()
    data.fill_(0x55)
    assert torch.equal(decoded, before)


def test_reads_from_any_offset() -> None:
    """Mapped tensors may have only even addresses; a decoder must not require more alignment."""
    type_ = TYPES["Q6_K"]
    data = torch.from_numpy(odd_rows(type_, rows=3, columns=512, seed=1))
    moved = torch.cat((torch.zeros(1, dtype=torch.uint8), data.flatten()))[1:].view(3, -1)
    assert torch.equal(dequantize(type_, moved, columns=512), dequantize(type_, data, columns=512))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_from_an_odd_address(name: str) -> None:
    type_ = TYPES[name]
    data = torch.arange(5, dtype=torch.uint8).repeat_interleave(type_.block_bytes)[1:]
    rows = data[: 3 * type_.block_bytes].view(1, -1)
    assert torch.equal(dequantize(type_, rows, columns=3), dequantize(type_, rows.clone(), columns=3))


def test_the_table_is_complete_and_that_of_ggml() -> None:
    assert DECODERS.keys() == ALL.keys() | {I8.name}
    assert len(ALL) == len(TYPES) + len(EXPANDED) + len(DECODED)
    assert TYPES.keys() < TODAY.keys()
    for type_ in TODAY.values():
        assert BY_GGML_ID[type_.ggml_id] is type_
        assert gguf.GGMLQuantizationType[type_.name] == type_.ggml_id
        sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_.ggml_id)]
        assert sizes == (type_.block_len, type_.block_bytes)


@pytest.mark.parametrize("name", [name for name in (*HALVES, "IQ1_M") if name in TODAY])
def test_sane_rows_are_sane(name: str) -> None:
    rows = torch.from_numpy(sane_rows(TODAY[name], rows=16, columns=512, seed=3, deviation=0.05))
    weights = dequantize(TODAY[name], rows, columns=512)
    assert abs(weights.mean().item()) < 0.01
    assert weights.std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize(
    ("data", "columns"),
    [
        (torch.zeros(2, 18, dtype=torch.uint8), 33),
        (torch.zeros(2, 18, dtype=torch.uint8), 64),
        (torch.zeros(18, dtype=torch.uint8), 32),
        (torch.zeros(2, 18, dtype=torch.int8), 32),
    ],
)
def test_refuses_shapes_that_do_not_fit(data: torch.Tensor, columns: int) -> None:
    with pytest.raises(ValueError, match="Q4_0"):
        dequantize(TYPES["Q4_0"], data, columns=columns)
