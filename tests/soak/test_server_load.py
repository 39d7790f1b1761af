"""Seconds of the load that `make soak` keeps up for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving import RunningServer
from tests.soak.http_load import Ask, Heard
from tests.soak.server_load import Result, Sample, drill


def result(*, memory: tuple[int, int] = (100, 100), left: float = 0, text: str = "so", error: str = "") -> Result:
    samples = [Sample(second, memory[second > 60], 9, 5) for second in range(180)]
    heard = Heard(text=text, pieces=[0.1], tokens=1, seconds=1, ended=True, error=error)
    return Result([(Ask("why", 4), heard), (Ask("why", 4, 2), Heard())], {"why": "so"}, samples, left)


def test_what_is_found() -> None:
    assert result().findings() == []
    assert result(text="other").findings() == ["1 of 1 answers differ from the answer alone"]
    assert result(error="500").findings() == ["500 (3 characters)"]
    assert result(left=3).findings() == ["3 KV blocks are held by nobody's request"]
    assert result(memory=(100, 110)).findings() == ["memory in bytes grew from 100 to 110"]
    assert "Findings: none" in result().report(64)


@pytest.mark.native
@pytest.mark.slow
def test_many_streams(default_model: Path) -> None:
    with RunningServer("--max-seqs", "8", "auto", str(default_model)) as server:
        found = drill(server, streams=12, seconds=3, distinct=6)
    # seconds are too few to tell a leak from a cache that fills
    assert [finding for finding in found.findings() if "grew" not in finding] == []
