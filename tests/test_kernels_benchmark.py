"""The benchmarks of products and of attention alone run and report every cell; no figure is judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import attention, kernels


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


@pytest.mark.native
def test_every_cell_of_attention_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "attention.json"
    attention.main(
        ["--shapes", "SmolLM2,7B", "--texts", "1x40,3x17", "--kv", "f16,q8_0", "--mib", "0.3", "--rounds", "1",
         "--threads", "2", "--json", str(report)]
    )  # fmt: skip
    cells = json.loads(report.read_text())
    assert [(cell["shape"], cell["kv"], cell["texts"], cell["tokens"]) for cell in cells] == [
        (shape, kv, *texts) for shape in ("SmolLM2", "7B") for kv in ("f16", "q8_0") for texts in ((1, 40), (3, 17))
    ]
    for cell in cells:
        assert min(cell[key] for key in ("gb_per_s", "plain_read", "share")) > 0
    # three blocks of 16 tokens with 3 heads of 64 in half precision: 36 KB a layer
    assert cells[0]["layers"] == 9
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(cells)


@pytest.mark.native
def test_queries_of_a_step_of_attention_stay_what_they_are() -> None:
    step = attention.DecodeStep(
        attention.NativeBackend(threads=1), attention.SHAPES["SmolLM2"], "f16", 1, 40, least_bytes=1
    )
    before = step.queries.tolist()
    for _ in range(50):
        step.run()
    assert step.queries.tolist() == pytest.approx(before, rel=1e-3)
