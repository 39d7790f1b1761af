"""The default model's next-token distributions against those that `transformers` gives its weights in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.parity.divergence import divergences
from tests.parity.running import Running
from tests.tolerances import KL_DEFAULT, KL_HIGH

GOLDEN = Path(__file__).parent / "golden" / "smollm2_oracle.json"


@pytest.mark.parametrize(("precision", "isa"), [("default", None), ("high", None), ("default", "torch")])
def test_next_tokens_are_distributed_as_they_should_be(default_model: Path, precision: str, isa: str | None) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    tokens = torch.tensor(golden["tokens"])
    logits = Running.load(default_model, precision=precision, isa=isa).whole(golden["ids"])[golden["positions"]]
    found = divergences(logits, tokens, torch.tensor(golden["logprobs"], dtype=torch.float64))
    assert found.min() > -1e-4
    assert found.mean() <= (KL_HIGH if precision == "high" else KL_DEFAULT)
    assert found.mean() <= golden["llamacpp"]["kl"]
    # among tokens that the oracle holds to be clearly apart, the best one is the best one
    margins = torch.tensor(golden["logprobs"])
    clear = margins[:, 0] - margins[:, 1] > 0.3
    assert clear.sum() > len(tokens) // 2
    assert torch.equal(logits.argmax(-1)[clear], tokens[clear, 0])
