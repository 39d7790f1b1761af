"""The model factory itself: its files are what llama.cpp's converter would have written of the reference."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from mistralrs.loading.gguf_file import GgufFile
from mistralrs.quant.types import TYPES
from tests.tiny import TOKENIZER_SIZE, Llama3Scaling, StorageTypes, TinyConfig, hashed_weights, vocabulary, write_tiny


def test_every_token_once_and_every_merge_made_of_tokens() -> None:
    tokens = vocabulary()
    assert len(set(tokens)) == len(tokens) == TOKENIZER_SIZE


def test_hash_is_pinned_and_on_the_half_grid() -> None:
    weights = hashed_weights("token_embd.weight", (3, 100), scale=0.5)
    assert np.array_equal(weights.astype(np.float16).astype(np.float32), weights)
    assert len(np.unique(weights)) > 250
    assert np.array_equal(weights, hashed_weights("token_embd.weight", (3, 100), scale=0.5))
    assert not np.array_equal(weights, hashed_weights("output.weight", (3, 100), scale=0.5))
    assert hashed_weights("a", (4,), scale=1024.0).tolist() == [559.0, -884.0, -126.0, -158.0]


@pytest.mark.parametrize("name", TYPES)
def test_stored_weights_are_the_references(name: str, tmp_path: Path) -> None:
    config = TinyConfig(
        hidden=256, heads=4, kv_heads=2, head_dim=64, feed_forward=256, layers=1, tied=False, vocab=301,
        types=StorageTypes.all(name),
    )  # fmt: skip
    model = write_tiny(tmp_path / "tiny.gguf", config)
    state = model.reference().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        key: value.shape for key, value in model.weights.items()
    }
    reader = gguf.GGUFReader(model.path)
    stored = {t.name: gguf.quants.dequantize(np.array(t.data), t.tensor_type) for t in reader.tensors}
    # Row order differs for q and k: row 2 of the file is the second row of the head, row 1 that of its upper half.
    assert np.array_equal(stored["blk.0.attn_k.weight"][1], state["model.layers.0.self_attn.k_proj.weight"][32])
    assert np.array_equal(stored["blk.0.attn_k.weight"][2], state["model.layers.0.self_attn.k_proj.weight"][1])
    assert np.array_equal(stored["blk.0.attn_v.weight"], state["model.layers.0.self_attn.v_proj.weight"])
    assert np.array_equal(stored["output.weight"], state["lm_head.weight"])


def test_reference_spreads_its_logits_and_is_tied(tiny_llama: Path, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.gguf")
    assert model.path.read_bytes() == tiny_llama.read_bytes()
    reference = model.reference()
    with torch.inference_mode():
        logits = reference(torch.arange(3, 40).view(1, -1)).logits
    assert logits.isfinite().all()
    assert 1.0 < logits.std() < 20.0
    assert reference.lm_head.weight.data_ptr() == reference.model.embed_tokens.weight.data_ptr()


def test_llama3_factors_are_those_of_transformers(tmp_path: Path) -> None:
    config = TinyConfig(head_dim=32, rope_scaling=Llama3Scaling())
    model = write_tiny(tmp_path / "tiny.gguf", config)
    plain = write_tiny(tmp_path / "plain.gguf", TinyConfig(head_dim=32)).reference()
    with GgufFile.open(model.path) as file:
        factors = torch.frombuffer(file.tensor("rope_freqs.weight").data, dtype=torch.float32).clone()
        assert file.require("llama.attention.key_length", int) == 32
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert ((factors > 1.0) & (factors < 8.0)).any()
    expected = model.reference().model.rotary_emb.inv_freq
    torch.testing.assert_close(plain.model.rotary_emb.inv_freq / factors, expected, rtol=1e-6, atol=0)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=str(TOKENIZER_SIZE)):
        TinyConfig(vocab=TOKENIZER_SIZE - 1)
