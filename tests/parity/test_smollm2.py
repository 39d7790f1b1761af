"""The default model's next-token distributions against those that `transformers` gives its weights in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.parity.running import Running
from tests.tolerances import KL_DEFAULT, KL_HIGH

GOLDEN = Path(__file__).parent / "golden" / "smollm2_oracle.json"


def divergences(logits: torch.Tensor, tokens: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """KL(expected, ours) in nats for each row, over the oracle's best tokens and one event for all the others.

    Never more than the divergence over the whole vocabulary, and never less than zero.
    """
    ours = torch.log_softmax(logits.double(), dim=-1).gather(1, tokens)
    p, q = (
        torch.cat([x, torch.log1p(-x.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-9))], dim=1) for x in (expected, ours)
    )
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize(("precision", "isa"), [("default", None), ("high", None), ("default", "torch")])
def test_next_tokens_are_distributed_as_they_should_be(default_model: Path, precision: str, isa: str | None) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    tokens = torch.tensor(golden["tokens"])
    logits = Running.load(default_model, precision=precision, isa=isa).whole(golden["ids"])[golden["positions"]]
    found = divergences(logits, tokens, torch.tensor(golden["logprobs"], dtype=torch.float64))
    assert found.min() > -1e-4
    assert found.mean() <= (KL_HIGH if precision == "high" else KL_DEFAULT)
    # among tokens that the oracle holds to be clearly apart, the best one is the best one
    margins = torch.tensor(golden["logprobs"])
    clear = margins[:, 0] - margins[:, 1] > 0.3
    assert clear.sum() > len(tokens) // 2
    assert torch.equal(logits.argmax(-1)[clear], tokens[clear, 0])
