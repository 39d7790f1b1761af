"""A few hundred chunkings; `make soak` makes ten thousand of each format."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistralrs.text.response.text_writer import TextWriter
from tests.soak import response_chunkings
from tests.soak.response_chunkings import drill, report, run


def test_a_report_has_a_line_for_each_format() -> None:
    results = run(["hermes", "llama-3"], 40, seed=2)
    assert [each.found for each in results.values()] == [[], []]
    assert "| `llama-3` |" in report(results, seed=2)


def test_lost_text_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = TextWriter.write
    monkeypatch.setattr(TextWriter, "write", lambda self, text: written(self, text)[1:])
    assert drill("hermes", 40, seed=2).found
    monkeypatch.setattr("sys.argv", ["drill", "--count", "1", "--report", str(tmp_path / "report.md")])
    assert response_chunkings.main() == 1
    assert "Different" in (tmp_path / "report.md").read_text()
