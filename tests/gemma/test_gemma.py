"""Gemma 3 270M in Q4_K_M: K-quants, windows, two rotary embeddings and a large vocabulary in a real model.

Slow, since the file and the vocabulary are large.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.parity import greedy
from tests.parity.divergence import divergences
from tests.parity.running import Running, Text
from tests.tolerances import KL_HIGH

pytestmark = [pytest.mark.slow, pytest.mark.native]

MODEL = Path(__file__).parents[2] / ".models" / "gemma-3-270m.Q4_K_M.gguf"
ORACLE = greedy.GOLDEN / "gemma3_oracle.json"


@pytest.fixture(scope="module")
def gemma() -> Path:
    """The file: MISTRALRS_TEST_GEMMA where that is set, else where `make gemma` puts it."""
    path = Path(os.environ.get("MISTRALRS_TEST_GEMMA", MODEL))
    if not path.is_file():
        pytest.skip("Gemma 3 270M is not here; to get it: make gemma")
    return path


@pytest.mark.parametrize("precision", greedy.PRECISIONS)
def test_the_first_64_tokens_are_those_of_llama_cpp(gemma: Path, precision: greedy.Precision) -> None:
    greedy.check(gemma, "gemma3", precision=precision)


@pytest.mark.parametrize("precision", ["default", "high"])
def test_next_tokens_are_nearer_to_float32_than_those_of_llama_cpp(gemma: Path, precision: str) -> None:
    """Within its sliding window and past it."""
    golden = json.loads(ORACLE.read_text(encoding="utf-8"))
    ids, positions = golden["ids"], golden["positions"]
    running = Running.load(gemma, precision=precision)
    text, limit = Text(ids, seed=0), running.model.limits.max_logits
    rows = []
    for start in range(0, len(ids), limit):
        end = min(start + limit, len(ids))
        wanted = [position - start for position in positions if start <= position < end]
        rows.append(running.step((text, start, end))[0][wanted])
    expected = torch.tensor(golden["logprobs"], dtype=torch.float64)
    found = divergences(torch.cat(rows), torch.tensor(golden["tokens"]), expected)
    assert found.min() > -1e-4
    assert found.mean() <= (KL_HIGH if precision == "high" else golden["llamacpp"]["kl"])
