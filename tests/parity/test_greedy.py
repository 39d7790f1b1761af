"""The default model's greedy tokens beside llama.cpp's: two programs that know nothing of each other read one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity import greedy


@pytest.mark.native
@pytest.mark.parametrize("precision", greedy.PRECISIONS)
def test_the_first_64_tokens_are_those_of_llama_cpp(default_model: Path, precision: greedy.Precision) -> None:
    greedy.check(default_model, "smollm2", precision=precision)
