"""Logits against `transformers`, and the same logits however the work is cut: tiny models of many shapes and types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mistralrs.quant.types import TYPES
from tests.parity.running import Running, Text, random_cuts, random_tokens
from tests.tiny import TOKENIZER_SIZE, Llama3Scaling, StorageTypes, TinyConfig, TinyModel, write_tiny
from tests.tolerances import FLOAT_LOGITS, HALF_CACHE, HALF_TIES, TWO_TERMS

CONFIGS = {
    "plain": TinyConfig(),
    "untied": TinyConfig(tied=False),
    "odd vocabulary": TinyConfig(vocab=TOKENIZER_SIZE + 13, tied=False),
    "no sharing of heads": TinyConfig(kv_heads=4),
    "nine heads": TinyConfig(hidden=72, heads=9, kv_heads=3, head_dim=8, feed_forward=40),
    "wide heads": TinyConfig(hidden=32, heads=2, kv_heads=1, head_dim=64),
    "Llama 3 rope": TinyConfig(head_dim=32, rope_scaling=Llama3Scaling(), rope_base=500000.0),
    "deep": TinyConfig(layers=6),
}

MIXTURES = {
    **{name: StorageTypes.all(name) for name in TYPES if name != "F32"},
    "mixed": StorageTypes(embedding="Q6_K", attention="Q4_K", feed_forward="Q5_1", head="F16"),
}


def reference(tiny: TinyModel, tokens: list[int], *, half_cache: bool = False) -> torch.Tensor:
    """Logits of `transformers`. ``half_cache``: with keys and values in half precision, as a cache has them."""
    model = tiny.reference()
    if half_cache:
        model.set_attn_implementation("half_cache")
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def _attend_half(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **options: Any
) -> Any:
    return sdpa_attention_forward(module, query, key.half().float(), value.half().float(), *args, **options)


AttentionInterface.register("half_cache", _attend_half)


def assert_close(logits: torch.Tensor, expected: torch.Tensor, *, tolerance: float) -> None:
    spread = (expected.amax() - expected.amin()).item()
    worst = (logits - expected).abs().max().item() / spread
    assert worst <= tolerance, f"off by {worst:.1e} of the range of the logits"


@pytest.mark.parametrize("name", CONFIGS)
def test_float_weights(name: str, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf", CONFIGS[name])
    tokens = random_tokens(TOKENIZER_SIZE, 150, seed=1)
    expected = reference(tiny, tokens)
    assert_close(Running.load(tiny.path, precision="f32").whole(tokens), expected, tolerance=FLOAT_LOGITS)
    logits = Running.load(tiny.path, precision="high").whole(tokens)
    assert_close(logits, expected, tolerance=HALF_CACHE)
    assert_close(logits, reference(tiny, tokens, half_cache=True), tolerance=HALF_TIES)


@pytest.mark.parametrize("name", MIXTURES)
def test_quantised_weights(name: str, tmp_path: Path) -> None:
    """Against the weights as the file's types decode them."""
    config = TinyConfig(
        hidden=256, heads=4, kv_heads=2, head_dim=64, feed_forward=512, tied=False, types=MIXTURES[name]
    )
    tiny = write_tiny(tmp_path / "tiny.gguf", config)
    tokens = random_tokens(TOKENIZER_SIZE, 100, seed=2)
    expected = reference(tiny, tokens)
    assert_close(Running.load(tiny.path, precision="f32").whole(tokens), expected, tolerance=TWO_TERMS)
    assert_close(Running.load(tiny.path, precision="high").whole(tokens), expected, tolerance=HALF_CACHE)


@pytest.mark.native
@pytest.mark.parametrize("precision", ["default", "f32"])
@pytest.mark.parametrize("name", ["F32", "Q4_1", "Q8_0", "Q4_K", "mixed"])
def test_however_the_work_is_cut(name: str, precision: str, tmp_path: Path) -> None:
    """Bit for bit: a sequence alone and whole, token by token with the cache, and in chunks beside others."""
    types = MIXTURES.get(name, StorageTypes())
    config = TinyConfig(hidden=256, heads=8, kv_heads=2, head_dim=32, feed_forward=256, types=types, tied=False)
    running = Running.load(write_tiny(tmp_path / "tiny.gguf", config).path, precision=precision)
    texts = [
        Text(random_tokens(TOKENIZER_SIZE, count, seed=count), seed=seed)
        for seed, count in enumerate((150, 33, 16, 1), 1)
    ]
    expected = [running.whole(text.tokens) for text in texts]
    for position in range(len(texts[1])):
        [row] = running.step((texts[1], position, position + 1))
        assert torch.equal(row[0], expected[1][position])
    for chunks in random_cuts(texts, seed=3, largest=15):
        for rows, (text, start, end) in zip(running.step(*chunks), chunks, strict=True):
            assert torch.equal(rows, expected[texts.index(text)][start:end])


@pytest.mark.native
def test_threads_do_not_matter(tiny_llama: Path) -> None:
    tokens = random_tokens(TOKENIZER_SIZE, 90, seed=4)
    first, *others = [Running.load(tiny_llama, threads=threads).whole(tokens) for threads in (1, 2, 3)]
    assert all(torch.equal(first, other) for other in others)


def test_the_reference_backend_alone(tmp_path: Path) -> None:
    """A whole quantized model runs in chunks on the reference backend, which needs no kernels."""
    config = TinyConfig(types=StorageTypes.all("Q8_0"))
    tiny = write_tiny(tmp_path / "tiny.gguf", config)
    running = Running.load(tiny.path, isa="torch", precision="f32")
    assert running.model.limits.max_seqs == 8
    tokens = random_tokens(TOKENIZER_SIZE, 100, seed=5)
    expected = reference(tiny, tokens)
    assert_close(running.whole(tokens), expected, tolerance=TWO_TERMS)
    text = Text(tokens, seed=1)
    rows = torch.cat([running.step(chunk)[0] for [chunk] in random_cuts([text], seed=6, largest=40)])
    assert_close(rows, expected, tolerance=TWO_TERMS)
