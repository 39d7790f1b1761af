"""Three of the kills that `make soak` makes fifty of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.killed_batches import drill
from tests.tiny import StorageTypes, TinyConfig, write_tiny


@pytest.mark.native
@pytest.mark.slow
def test_killed_batches(tmp_path: Path) -> None:
    config = TinyConfig(types=StorageTypes.all("Q8_0"), context=4096)
    result = drill(write_tiny(tmp_path / "tiny.gguf", config).path, tmp_path, kills=3, lines=150)
    assert result.findings == []
    assert result.kills == 3
    assert result.with_answers
