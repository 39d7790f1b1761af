"""Some of the actions of which `make soak` takes two hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.chat_edits import drill


@pytest.mark.native
@pytest.mark.model
def test_edits_give_the_bits_of_a_chat_typed_anew(default_model: Path, tmp_path: Path) -> None:
    result, faulty = drill(default_model, tmp_path, actions=20, seed=8, planted_actions=15)
    assert result.findings == []
    assert result.answers >= 10
    assert result.cached > result.prompt // 3
    assert faulty.findings
