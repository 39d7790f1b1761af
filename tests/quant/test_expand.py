"""Types requantized without loss: the product of integers and scales is the weight, bit for bit; and old layouts."""

from __future__ import annotations

import struct
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mistralrs.quant.dequantize import dequantize
from mistralrs.quant.requantize_lossless import GROUP, UNPACKERS, requantize_lossless
from mistralrs.quant.types import BY_GGML_ID, DECODED, EXPANDED, TYPES, QuantType
from tests.quant.blocks import odd_rows, random_bytes, sane_rows

OLD = {name: type_ for name, type_ in (EXPANDED | DECODED).items() if type_ not in BY_GGML_ID.values()}


def finite_rows(type_: QuantType, *, rows: int, columns: int) -> NDArray[np.uint8]:
    """Like ``odd_rows``, with finite scales if these are float32."""
    data = odd_rows(type_, rows=rows, columns=columns, seed=5)
    singles = {"Q4_0_V1": 1, "Q4_0_V2": 1, "Q8_0_V1": 1, "Q4_1_V1": 2, "Q4_1_V2": 2}.get(type_.name, 0)
    blocks = data.reshape(-1, type_.block_bytes)
    scales = np.random.default_rng(6).normal(scale=0.01, size=(len(blocks), singles)).astype(np.float32)
    blocks[:, : 4 * singles] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("name", EXPANDED)
def test_the_product_is_the_weight(name: str) -> None:
    type_ = EXPANDED[name]
    data = torch.from_numpy(finite_rows(type_, rows=9, columns=768))
    values, scales = requantize_lossless(type_, data, 768)
    assert (values.dtype, values.shape) == (torch.int8, (9, 768))
    assert (scales.dtype, scales.shape) == (torch.float32, (9, 768 // GROUP))
    product = (values.view(9, -1, GROUP).float() * scales[:, :, None]).view(9, 768)
    if name in OLD:
        expected = np.array([by_definition(type_, bytes(row)) for row in data.numpy()], dtype=np.float32)
    else:
        with np.errstate(over="ignore"):  # MXFP4 reaches beyond float32
            expected = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType(type_.ggml_id))
    np.testing.assert_array_equal(product.numpy().view(np.uint32), expected.view(np.uint32))
    assert len(values.unique()) > 2


@pytest.mark.parametrize("name", OLD)
def test_old_layouts_decode_as_they_were_defined(name: str) -> None:
    type_ = OLD[name]
    data = finite_rows(type_, rows=5, columns=96)
    expected = np.array([by_definition(type_, bytes(row)) for row in data], dtype=np.float32)
    decoded = dequantize(type_, torch.from_numpy(data), columns=96).numpy()
    np.testing.assert_array_equal(decoded.view(np.uint32), expected.view(np.uint32))


def by_definition(type_: QuantType, row: bytes) -> list[np.float32]:
    """One row, weight by weight, from the structs that ggml had at the time."""
    weights = []
    for start in range(0, len(row), type_.block_bytes):
        weights += block_by_definition(type_.name, row[start : start + type_.block_bytes], type_.block_len)
    return weights


def block_by_definition(name: str, block: bytes, length: int) -> list[np.float32]:
    scale_code = "<f" if name in ("Q4_0_V1", "Q4_0_V2", "Q8_0_V1", "Q4_1_V1", "Q4_1_V2") else "<e"
    width = struct.calcsize(scale_code)
    scale = np.float32(struct.unpack_from(scale_code, block)[0])
    if name == "Q8_0_V1":
        return [scale * np.float32(q) for q in struct.unpack_from("<32b", block, width)]
    has_minimum = name in DECODED
    minimum = np.float32(struct.unpack_from(scale_code, block, width)[0]) if has_minimum else None
    position = width * (2 if has_minimum else 1)
    fifth = 0
    if name.startswith("Q5"):
        fifth = struct.unpack_from("<I", block, position)[0]
        position += 4
    weights = []
    for i in range(length):
        if name.endswith("V2"):  # weights i and i + 16 share a byte
            nibble = block[position + i % 16] >> (4 * (i // 16)) & 15
        else:  # weights 2 i and 2 i + 1 do
            nibble = block[position + i // 2] >> (4 * (i % 2)) & 15
        q = nibble | (fifth >> i & 1) << 4
        if minimum is None:
            weights.append(scale * np.float32(q - (16 if name.startswith("Q5") else 8)))
        else:
            weights.append(scale * np.float32(q) + minimum)
    return weights


def test_every_expanded_type_has_an_unpacker_and_the_tables_are_apart() -> None:
    assert UNPACKERS.keys() == EXPANDED.keys()
    assert {type_.ggml_id for type_ in OLD.values()} == {2, 3, 4, 5, 6, 7, 8}
    assert not TYPES.keys() & EXPANDED.keys()


def test_mxfp4_at_its_smallest_and_largest_exponents() -> None:
    type_ = EXPANDED["MXFP4"]
    data = random_bytes(type_, rows=256, columns=32, seed=1)
    data[:, 0] = np.arange(256)
    values, scales = requantize_lossless(type_, torch.from_numpy(data), 32)
    with np.errstate(over="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType.MXFP4)
    product = (values.view(256, 2, 16).float() * scales[:, :, None]).view(256, 32)
    np.testing.assert_array_equal(product.numpy().view(np.uint32), expected.view(np.uint32))
    assert scales[0, 0].item() == 2.0**-128
    assert scales[254, 0].item() == 2.0**126


def test_sane_rows_of_mxfp4_are_about_right() -> None:
    type_ = EXPANDED["MXFP4"]
    rows = torch.from_numpy(sane_rows(type_, rows=16, columns=512, seed=3, deviation=0.05))
    assert 0.03 < dequantize(type_, rows, columns=512).std().item() < 0.08


def test_the_result_does_not_share_memory() -> None:
    for type_ in EXPANDED.values():
        data = torch.zeros(2, type_.row_bytes(256), dtype=torch.uint8)
        values, scales = requantize_lossless(type_, data, 256)
        before = values.clone(), scales.clone()
        data.fill_(0x55)
        assert torch.equal(values, before[0])
        assert torch.equal(scales, before[1])


def test_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="IQ4_XS"):
        requantize_lossless(EXPANDED["IQ4_XS"], torch.zeros(2, 136, dtype=torch.uint8), 512)


def test_the_codebooks_are_read_when_they_are_needed() -> None:
    program = "import sys, mistralrs.quant.dequantize; print('gguf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
