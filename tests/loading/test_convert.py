"""Conversions of stored matrices: without loss where possible, and reported where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mistralrs.errors import LoadError
from mistralrs.loading.convert import Conversion
from mistralrs.loading.pipeline import BLOCK_SIZE, LoadPlan, load
from mistralrs.ops.backend import Backend
from mistralrs.ops.weight import Matrix
from mistralrs.quant.dequantize import dequantize
from mistralrs.quant.quantize import isq_type
from mistralrs.quant.types import DECODED, EXPANDED, TYPES, QuantType
from tests.buffers import tensor_of
from tests.ggml_writer import write_ggml
from tests.ops.harness import for_every_isa, native, reference
from tests.parity.running import random_tokens
from tests.quant.blocks import random_bytes, sane_rows
from tests.quant.test_expand import finite_rows
from tests.tiny import TinyConfig, write_tiny

COLUMNS = 768


def matrix_of(type_: QuantType, data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Matrix:
    return Matrix("weight", type_, len(data), COLUMNS, np.ascontiguousarray(data).data.cast("B"))


def placed(matrix: Matrix, conversion: Conversion, backend: Backend) -> torch.Tensor:
    target = conversion.target("up_proj", matrix)
    return tensor_of(backend.place(conversion.convert(matrix, target, backend)).dense())


@for_every_isa
@pytest.mark.parametrize("name", sorted(EXPANDED | DECODED))
def test_types_without_kernels_lose_nothing(name: str, isa: str) -> None:
    type_ = (EXPANDED | DECODED)[name]
    data = finite_rows(type_, rows=19, columns=COLUMNS)
    expected = dequantize(type_, torch.from_numpy(data), COLUMNS)
    expected = torch.where(expected.isfinite(), expected, 0)
    for backend in (native(isa), reference()):
        result = placed(matrix_of(type_, data), Conversion(), backend)
        # equal, not of the same bits: a product with a negative scale gives a zero its sign
        assert torch.equal(torch.where(result.isfinite(), result, 0), expected)


def test_floats_keep_their_type_unless_another_is_asked_for() -> None:
    data = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(1))
    stored = data.half()
    matrix = matrix_of(TYPES["F16"], stored.view(torch.uint8).numpy())
    assert Conversion().target("up_proj", matrix) is TYPES["F16"]
    assert Conversion("f32").target("up_proj", matrix) is TYPES["F16"]
    assert torch.equal(placed(matrix, Conversion("bf16"), reference()), stored.float().bfloat16().float())
    huge = matrix_of(TYPES["F32"], (data * 1e30).view(torch.uint8).numpy())
    with pytest.raises(LoadError, match="too large for F16"):
        placed(huge, Conversion("f16"), reference())


@pytest.mark.parametrize("name", ["q8_0", "q4_k", "q4_0"])
def test_quantizing_takes_floats_alone_and_leaves_the_router(name: str) -> None:
    data = torch.randn(4, COLUMNS, generator=torch.Generator().manual_seed(2))
    matrix = matrix_of(TYPES["F32"], data.view(torch.uint8).numpy())
    conversion = Conversion(quantize_to=isq_type(name))
    assert conversion.target("up_proj", matrix) is TYPES[name.upper()]
    assert conversion.target("router", matrix) is TYPES["F32"]
    result = placed(matrix, conversion, reference())
    error = ((result - data).square().sum() / data.square().sum()).sqrt().item()
    assert 0 < error < {"q8_0": 0.01, "q4_k": 0.09, "q4_0": 0.1}[name]
    stored = matrix_of(TYPES["Q5_0"], sane_rows(TYPES["Q5_0"], rows=3, columns=COLUMNS, seed=3, deviation=0.05))
    assert conversion.target("up_proj", stored) is TYPES["Q5_0"]


def test_weights_that_are_not_finite_cannot_be_quantized() -> None:
    data = torch.full((2, COLUMNS), float("nan"))
    matrix = matrix_of(TYPES["F32"], data.view(torch.uint8).numpy())
    with pytest.raises(LoadError, match="weight cannot be quantized to Q4_K"):
        placed(matrix, Conversion(quantize_to=isq_type("q4_k")), reference())


@pytest.mark.parametrize("name", sorted(TYPES | EXPANDED | DECODED))
@pytest.mark.parametrize("conversion", [Conversion(), Conversion("f16"), Conversion(quantize_to=isq_type("q4_k"))])
def test_a_router_is_placed_as_floats(name: str, conversion: Conversion) -> None:
    """Kernels read it as floats, for any stored type and conversion."""
    type_ = (TYPES | EXPANDED | DECODED)[name]
    matrix = matrix_of(type_, finite_rows(type_, rows=3, columns=COLUMNS))
    assert conversion.target("router", matrix).name in ("F32", "F16", "BF16")


def test_old_blocks_of_16_that_do_not_fill_one_of_32_are_decoded() -> None:
    data = finite_rows(EXPANDED["Q4_2"], rows=3, columns=48)
    matrix = Matrix("weight", EXPANDED["Q4_2"], 3, 48, np.ascontiguousarray(data).data.cast("B"))
    conversion = Conversion()
    assert conversion.target("up_proj", matrix) is TYPES["F32"]
    weights = placed(matrix, conversion, reference())
    assert torch.equal(weights, dequantize(EXPANDED["Q4_2"], torch.from_numpy(data), 48))


def test_rows_must_split_in_blocks() -> None:
    data = random_bytes(TYPES["Q4_K"], rows=2, columns=256, seed=4)
    matrix = Matrix("weight", TYPES["Q4_K"], 2, 100, data.data.cast("B"))
    with pytest.raises(LoadError, match="rows of 100 do not split in blocks of Q4_K"):
        Conversion().target("up_proj", matrix)


@pytest.mark.parametrize("version", ["ggml", "ggmf version 1", "ggjt version 1", "ggjt version 2", "ggjt version 3"])
@pytest.mark.parametrize("type_", ["F16", "Q4_0"])
def test_a_legacy_file_gives_the_logits_of_its_weights(tmp_path: Path, version: str, type_: str) -> None:
    """Compares with transformers on the file's weights in float32."""
    from mistralrs.engine.batch import Batch, CancelFlag
    from mistralrs.engine.model_runner import ModelRunner

    tiny = write_tiny(tmp_path / "tiny.gguf", TinyConfig(tied=False))
    legacy = write_ggml(tmp_path / "tiny.bin", tiny, version=version, type_=type_)
    plan = LoadPlan(max_seqs=1, max_batch_tokens=64, precision="f32", gqa=tiny.config.heads // tiny.config.kv_heads)
    model = load(legacy.path, reference(), plan, architecture="llama")
    tokens = random_tokens(tiny.config.vocab, 40, seed=5)
    groups, rows = model.limits.kv_groups, list(range(40))
    batch = Batch.of_one_sequence(tokens, 0, groups=groups, block_size=BLOCK_SIZE, logits_indices=rows)
    ours = tensor_of(ModelRunner(model.decoder, vocab_size=model.spec.vocab_size).forward(batch, CancelFlag()))
    with torch.inference_mode():
        theirs = legacy.reference()(torch.tensor([tokens])).logits[0]
    assert (ours - theirs).abs().max() <= 1e-4 * (theirs.max() - theirs.min())
