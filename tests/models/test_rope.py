"""Rotary frequencies against those of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mistralrs.loading.model_metadata import HfMetadata
from mistralrs.models.hf_mapping import read_rope
from mistralrs.nn.rope import Rope, inverse_frequencies
from tests.models.test_specs import Stored
from tests.tiny import Llama3Scaling, TinyConfig, rope_factors


@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_plain_and_linear(dim: int, base: float) -> None:
    plain = _reference(dim, {"rope_type": "default", "rope_theta": base})
    torch.testing.assert_close(torch.tensor(inverse_frequencies(Rope(dim, base))), plain, rtol=1e-6, atol=0)
    linear = _reference(dim, {"rope_type": "linear", "rope_theta": base, "factor": 4.0})
    found = torch.tensor(inverse_frequencies(Rope(dim, base, linear_factor=4.0)))
    torch.testing.assert_close(found, linear, rtol=1e-6, atol=0)


def test_llama_3() -> None:
    scaling = Llama3Scaling(original_context=8192)
    factors = rope_factors(TinyConfig(head_dim=64, rope_base=500000.0), scaling)
    expected = _reference(
        64,
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
    )
    found = torch.tensor(inverse_frequencies(Rope(64, 500000.0, factors=tuple(factors.tolist()))))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0}
YARN |= {"original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 4.0, "rope_theta": 1e4},
        {"beta_fast": 8.0, "beta_slow": 2.0},
        {"attention_factor": 1.25},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 0.707, "mscale_all_dim": 1.5},
        {"truncate": False},
        {"original_max_position_embeddings": 64},
        {"beta_fast": 1.0, "beta_slow": 1.0},
    ],
)
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_yarn(dim: int, changes: dict[str, Any]) -> None:
    settings = YARN | changes
    config = LlamaConfig(
        hidden_size=dim,
        num_attention_heads=1,
        head_dim=dim,
        max_position_embeddings=65536,
        rope_parameters=dict(settings),
    )
    theirs = LlamaRotaryEmbedding(config)
    facts = HfMetadata(Stored({}, {}), Path("config.json"), {"max_position_embeddings": 65536})
    rope = read_rope(facts, dim, dict(settings))
    torch.testing.assert_close(torch.tensor(inverse_frequencies(rope)), theirs.inv_freq, rtol=1e-6, atol=0)
    assert rope.scale == pytest.approx(theirs.attention_scaling)


def _reference(dim: int, parameters: dict[str, object]) -> torch.Tensor:
    config = LlamaConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim, rope_parameters=parameters)
    frequencies: torch.Tensor = LlamaRotaryEmbedding(config).inv_freq
    return frequencies
