"""The measurements of precisions: divergence from float32 and speeds; no figure of speed is judged here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from benchmarks import divergence, precisions
from tests.tiny import StorageTypes, TinyConfig, write_tiny


def test_divergence_is_that_of_torch() -> None:
    random = np.random.default_rng(1)
    oracle, found = (random.normal(size=(100, 30)).astype(np.float32) for _ in range(2))
    padded = np.concatenate([found, np.full((100, 2), 50, np.float32)], axis=1)  # places that are no tokens
    result = divergence.divergence(oracle, iter([padded[:70], padded[70:]]))
    p, q = (torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (oracle, found))
    rows = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert result["mean"] == pytest.approx(rows.mean().item())
    assert result["p99"] == pytest.approx(rows.quantile(0.99).item())
    assert result["top1"] == (oracle.argmax(-1) == found.argmax(-1)).mean()


@pytest.mark.native
def test_a_file_is_compared_with_its_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out, text = tmp_path / "m.gguf", tmp_path / "reports" / "d", tmp_path / "text"
    write_tiny(path, TinyConfig(feed_forward=256, types=StorageTypes.all("Q8_0")))
    text.write_text("The cat and the hen. " * 10)
    types: dict[str, set[str]] = {}
    compared = divergence.compared

    def seen(file: Path, *rest: Any) -> dict[str, Any]:
        for tensor in gguf.GGUFReader(file).tensors:
            types.setdefault(tensor.name.split(".")[-2], set()).add(tensor.tensor_type.name)
        return compared(file, *rest)

    monkeypatch.setattr(divergence, "compared", seen)
    options = ["--store", "ffn_down=Q3_K", "--text", str(text), "--tokens", "70", "--precisions", "default,high"]
    divergence.main([str(path), *options, "--out", str(out)])
    assert (types["ffn_down"], types["ffn_up"]) == ({"Q3_K"}, {"Q8_0"})
    [record] = json.loads(out.with_suffix(".json").read_text())
    assert (record["file"], record["tokens"]) == ("m-ffn_down-Q3_K.gguf", 70)
    high, default = (record["engines"][precision] for precision in ("high", "default"))
    assert 0 <= high["mean"] < 1e-6 < default["mean"] < 1e-2
    assert high["top1"] == 1
    assert "m-ffn_down-Q3_K.gguf, 70 tokens of text | default |" in out.with_suffix(".md").read_text()
    with pytest.raises(SystemExit, match="no matrix of the role ffn_side"):
        divergence.main([str(path), "--store", "ffn_side=Q3_K", "--text", str(text), "--out", str(out)])


def test_precisions_are_measured_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, turns = tmp_path / "p.json", []
    out.write_text(json.dumps([{"file": "kept.gguf"}, {"file": "m.gguf", "prompt": "old"}]))

    def benched(path: Path, precision: str, args: argparse.Namespace) -> list[dict[str, Any]]:
        turns.append(precision)
        speeds = {"tg4": 10.0, "pp8": {"fast": 120.0, "default": 100.0, "high": 60.0}[precision]}
        return [{"test": test, "tok_s_median": speed, "isa": "avx2", "threads": 2} for test, speed in speeds.items()]

    monkeypatch.setattr(precisions, "benched", benched)
    precisions.main([str(tmp_path / "m.gguf"), "--rounds", "2", "--out", str(out)])
    assert turns == ["fast", "default", "high"] * 2
    assert [(each["file"], each.get("prompt")) for each in json.loads(out.read_text())] == [
        ("kept.gguf", None), ("m.gguf", [120, 120]), ("m.gguf", [100, 100]), ("m.gguf", [60, 60]),
    ]  # fmt: skip
    assert "m.gguf high prompt 0.60 answer 1.00" in capsys.readouterr().out
