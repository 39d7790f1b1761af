"""A few of the cells that `make soak` tries all of."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.adapters.peft_adapters import quiet
from tests.soak.adapter_cells import all_cells, run_cells


def test_a_sample_of_the_cells(tmp_path: Path) -> None:
    with quiet():
        results = run_cells(Random(4).sample(all_cells(), 12), tmp_path)
    assert [result for result in results if result.outcome == "wrong"] == []
    assert sum(result.outcome == "equal" for result in results) >= 6
