"""Three of the kills that `make soak` makes a hundred of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.killed_chats import drill


@pytest.mark.native
@pytest.mark.model
@pytest.mark.slow
def test_killed_while_answering(default_model: Path, tmp_path: Path) -> None:
    result = drill(default_model, tmp_path, kills=3)
    assert result.findings == []
    assert (result.kills, result.turns) == (3, 3)
    assert result.others > 0
    assert result.cached > result.prompt // 2
