"""A few of the files that `make soak` tries hundreds of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.retyped import Base, write_base
from tests.soak.guarded import SOUND_OUTCOMES
from tests.soak.quantized_whole import mixed, run_cases


@pytest.mark.native
def test_mixed_types(tmp_path: Path) -> None:
    found = {name: Base.read(write_base(tmp_path, name)) for name in ("mixtral-single", "llama", "gemma2")}
    cases = run_cases(found, mixed(found, range(20), seed=2), tmp_path)
    assert [case for case in cases if case.outcome.kind not in SOUND_OUTCOMES] == []
    assert sum(case.outcome.kind == "loaded" for case in cases) >= 15
