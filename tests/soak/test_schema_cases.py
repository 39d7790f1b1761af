"""About a hundred requests by the description; `make soak` sends two thousand."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.soak.schema_cases import drill


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed; the extra dev has it")
def test_every_answer_is_as_described(tmp_path: Path) -> None:
    rounds, wrong, report = drill(tmp_path, 100, examples=12, seed=1, every_border=False)
    assert wrong == []
    assert sum(each.cases for each in rounds) >= 100
    assert "`/v1/chat/completions`" in report
