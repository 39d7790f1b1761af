"""The benchmark of products alone runs and reports every cell; no figure is judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import kernels


@pytest.mark.native
def test_every_cell_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "ROUNDS", 10)
    report = tmp_path / "kernels.json"
    kernels.main(
        ["--types", ",".join(("F32", *kernels.NAMES)), "--tokens", "1,5,33", "--mib", "0.05", "--columns", "256",
         "--seconds", "0", "--threads", "2", "--json", str(report)]
    )  # fmt: skip
    cells = json.loads(report.read_text())
    assert [(cell["type"], cell["tokens"]) for cell in cells] == [
        (name, tokens) for name in ("F32", *kernels.NAMES) for tokens in (1, 5, 33)
    ]
    for cell in cells:
        assert min(cell[key] for key in ("gb_per_s", "plain_read", "gmac_per_s", "int8_peak")) > 0
        assert cell["share"] == max(cell["gb_per_s"] / cell["plain_read"], cell["gmac_per_s"] / cell["int8_peak"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(cells)
