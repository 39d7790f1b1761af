"""The KV blocks of a model's groups: within the budget, and enough for long contexts and many sequences."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.loading.kv_budget import kv_groups
from mistralrs.loading.pipeline import LoadPlan, load
from mistralrs.models.spec import AttentionSpec, DecoderSpec, LayerSpec, NormSpec
from mistralrs.ops.backend import resolve
from mistralrs.ops.kv_groups import KvGroup, max_blocks_per_seq
from tests.architectures import VARIANTS, WINDOW, write_folder

LAYER_BLOCK = 2 * 8 * 128 * 2 * 16
"""Bytes of a block of one layer: keys and values of 8 heads of 128 halves, 16 tokens."""
STEP = 512
MISTRAL = (4096,) * 32
GEMMA = ((512,) * 5 + (0,)) * 5


def groups(windows: tuple[int, ...], context: int, blocks: int, *, max_seqs: int = 16) -> tuple[KvGroup, ...]:
    """The groups of a model with these windows, layer by layer; ``blocks``: the budget in blocks of one layer."""
    spec = DecoderSpec(
        layers=tuple(map(LayerSpec, windows)), hidden_size=1, ffn_size=1, vocab_size=1, max_position=context,
        attention=AttentionSpec(num_heads=8, kv_heads=8, head_dim=128, ropes=()), norm=NormSpec(eps=1e-5),
    )  # fmt: skip
    return kv_groups(spec, blocks * LAYER_BLOCK, dtype="f16", max_seqs=max_seqs, step=STEP, block_size=16)


@given(
    windows=st.lists(st.sampled_from([0, 64, 512, 4096]), min_size=1, max_size=8).map(tuple),
    context=st.integers(1, 40_000),
    blocks=st.integers(-5, 1_000_000),
    max_seqs=st.integers(1, 32),
)
def test_no_budget_is_exceeded_and_more_is_never_less(
    windows: tuple[int, ...], context: int, blocks: int, max_seqs: int
) -> None:
    found = groups(windows, context, blocks, max_seqs=max_seqs)
    assert [group.window for group in found] == sorted(set(windows))
    assert sum(windows.count(group.window) * group.num_blocks for group in found) <= max(blocks, 0)
    more = groups(windows, context, blocks + 1000, max_seqs=max_seqs)
    assert all(group.num_blocks <= other.num_blocks for group, other in zip(found, more, strict=True))
    rich = groups(windows, context, 10**9, max_seqs=max_seqs)
    for group in rich:
        assert group.num_blocks == max_seqs * max_blocks_per_seq(context, window=group.window, step=STEP, block_size=16)


def test_without_windows_all_sequences_share_the_budget() -> None:
    assert groups((0,) * 32, 8192, 32 * 700) == (KvGroup(700),)
    assert groups((0,) * 32, 8192, 32 * 9000) == (KvGroup(16 * 512),)


def test_a_model_with_windows_alone_reaches_its_context() -> None:
    """32,768 tokens in the memory of 4,624."""
    [group] = groups(MISTRAL, 32768, 32 * 289)
    assert group == KvGroup(289, 4096)
    assert group.max_context(32768, step=STEP, block_size=16) == 32768
    [less] = groups(MISTRAL, 32768, 32 * 288)
    assert less.max_context(32768, step=STEP, block_size=16) == 288 * 16


def test_windows_beside_full_layers_take_half_at_most() -> None:
    """Five full layers and 25 with a window allow few sequences with a long context, or more with a shorter one."""
    one = max_blocks_per_seq(131072, window=512, step=STEP, block_size=16)
    assert groups(GEMMA, 131072, 25 * one + 5 * 300) == (KvGroup(300), KvGroup(one, 512))
    full, window = groups(GEMMA, 131072, 25 * one * 10)
    assert (full.num_blocks, window.num_blocks) == (25 * one, 5 * one)
    assert groups(GEMMA, 131072, 10**9) == (KvGroup(16 * 8192), KvGroup(16 * one, 512))


@pytest.mark.parametrize(("name", "context"), [("llama-linear", 192), ("mistral", 512), ("qwen2-window", 320)])
def test_a_loaded_model_has_the_context_that_its_windows_allow(
    name: str, context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for 12 blocks in each of four layers gives a longer context if all or half of them have windows."""
    folder = write_folder(tmp_path / name, VARIANTS[name])
    backend, plan = resolve("cpu", threads=1).backend, LoadPlan(max_seqs=1, max_batch_tokens=16)
    totals: list[int] = []
    load(folder, backend, plan, progress=lambda what, done, total: totals.append(total))
    block_bytes = 2 * 2 * 16 * 2 * 16  # keys and values, KV heads, head_dim, half precision
    monkeypatch.setattr("mistralrs.loading.pipeline.available_bytes", lambda: totals[0] + 2 * 4 * 12 * block_bytes)
    model = load(folder, backend, plan)
    assert model.max_model_len == context
    slides = max_blocks_per_seq(512, window=WINDOW, step=16, block_size=16)
    assert {group.num_blocks for group in model.limits.kv_groups if group.window} <= {slides}
