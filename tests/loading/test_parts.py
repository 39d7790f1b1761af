"""Parts found in a checkpoint: the order of rotary rows, biases, fused tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mistralrs.loading.checkpoint_parts import CheckpointParts, interleaved_to_halves
from mistralrs.loading.gguf_file import GgufFile
from mistralrs.loading.model_metadata import GgufMetadata
from mistralrs.models.registry import ARCHITECTURES
from mistralrs.ops.backend import resolve
from tests.buffers import tensor_of
from tests.tiny import TinyConfig, write_tiny


def test_order_of_rotary_rows() -> None:
    """Two heads of six rows, four of them rotated: pairs (0, 1) and (2, 3) of the file become (0, 2) and (1, 3)."""
    assert list(interleaved_to_halves(12, 6, 4)) == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    assert list(interleaved_to_halves(4, 4, 4)) == [0, 2, 1, 3]


@pytest.mark.parametrize("isa", [None, "torch"])
def test_weights_are_those_of_transformers(isa: str | None, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny.gguf", TinyConfig(heads=6, kv_heads=3, head_dim=24, tied=False))
    form = ARCHITECTURES["llama"].gguf
    assert form is not None
    with GgufFile.open(tiny.path) as file:
        parts = CheckpointParts(file, form, form.spec(GgufMetadata(file)), resolve("cpu", isa=isa).backend)
        state = {name: torch.from_numpy(weight) for name, weight in tiny.weights.items()}
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            [weight] = parts.linears([name], layer=1)
            assert torch.equal(tensor_of(weight.dense()), state[f"model.layers.1.self_attn.{name}.weight"])
        gate, up = parts.linears(["gate_proj", "up_proj"], layer=0)
        assert torch.equal(tensor_of(gate.dense()), state["model.layers.0.mlp.gate_proj.weight"])
        assert torch.equal(tensor_of(up.dense()), state["model.layers.0.mlp.up_proj.weight"])
        [head] = parts.linears(["lm_head"])
        assert torch.equal(tensor_of(head.dense()), state["lm_head.weight"])
        norm, bias = parts.norm("ffn_norm", layer=1)
        assert bias is None
        assert torch.equal(tensor_of(norm), state["model.layers.1.post_attention_layernorm.weight"])


def test_placed_bytes_are_enough(tmp_path: Path) -> None:
    """The planned bytes equal the allocated ones up to alignment, because memory is checked by them beforehand."""
    tiny = write_tiny(tmp_path / "tiny.gguf")
    form = ARCHITECTURES["llama"].gguf
    assert form is not None
    with GgufFile.open(tiny.path) as file:
        seen: list[tuple[int, int]] = []
        spec = form.spec(GgufMetadata(file))
        parts = CheckpointParts(file, form, spec, resolve("cpu").backend, progress=lambda *news: seen.append(news))
        weights = parts.linears(["embed_tokens"])
        for layer in range(2):
            weights += parts.linears(
                ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], layer=layer
            )
        assert seen[-1] == (parts.placed_bytes, parts.placed_bytes)
        taken = sum(weight.nbytes for weight in weights)
        assert taken <= parts.placed_bytes <= taken + 256 * len(weights)
