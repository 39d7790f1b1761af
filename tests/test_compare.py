"""The comparison of engines: its table and its pictures show what was measured; no figure is judged here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from benchmarks import compare, plots
from benchmarks.roofline import token_cost

COST = {"bytes": 1e9, "layer_macs": 1e9, "head_macs": 5.12e10}


def record(engine: str, file: str = "a.gguf", *, threads: int = 2, number: int = 0, **cells: float) -> dict[str, Any]:
    return {
        "file": file, "engine": engine, "round": number, "threads": threads, "bytes": 2e9, "plain_read": 4e10,
        "int8_peak": 1e12, "cost": COST, "cells": cells, "load_s": 1.0, "peak_bytes": 3e9,
    }  # fmt: skip


def test_a_cell_has_its_ratio_to_the_fastest_and_its_share_of_the_limit() -> None:
    records = [record("ours", tg128=20.0, pp512=500.0, number=number) for number in range(2)]
    records += [record("llama.cpp", tg128=10.0, pp512=125.0), record("OpenVINO", tg128=5.0, pp512=1000.0)]
    lines = list(compare.report(records))
    [decode] = [line for line in lines if line.startswith("| tg128")]
    [prompt] = [line for line in lines if line.startswith("| pp512")]
    assert decode.endswith("| 2.00 | 50% |"), decode  # 20 * 1 GB of 40 GB/s
    assert prompt.endswith("| 0.50 | 55% |"), prompt  # 500 * (1 + 51.2 / 512) GMAC of 1,000
    assert any("plain read 40.0 GB/s, int8 peak 1000 GMAC/s; rounds: 2" in line for line in lines)


def test_threads_have_tables_of_their_own() -> None:
    lines = list(compare.report([record("ours", tg128=1.0, threads=1), record("ours", tg128=2.0)]))
    assert [line[0] for line in lines if "threads; plain read" in line] == ["1", "2"]


def test_pictures_are_drawn_of_what_was_measured() -> None:
    records = [record("ours", tg128=20.0, **{"tg128@2000": 15.0, "tg128@8000": 10.0}), record("llama.cpp", tg128=5.0)]
    [depth] = plots.pictures(records)
    assert (depth.name, depth.lines) == ("depth", {"ours, a": [(0, 1.0), (2000, 0.75), (8000, 0.5)]})
    larger = {**record("ours", "b.gguf", tg32=8.0), "cost": {**COST, "bytes": 2e9}}
    named = {picture.name: picture for picture in plots.pictures([*records, larger])}
    assert named["decode-size"].lines["ours"] == [(1.0, 20.0), (2.0, 8.0)]
    assert named["decode-size"].limit == [(1.0, 40.0), (2.0, 20.0)]


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_costs_the_matrices_that_it_uses(tmp_path: Path, tied: bool) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_expert_count(4)
    writer.add_expert_used_count(1)
    for name, shape in (
        ("token_embd.weight", (50, 8)),
        ("blk.0.attn_q.weight", (8, 8)),
        ("blk.0.ffn_up_exps.weight", (4, 16, 8)),
        ("output_norm.weight", (8,)),
        *(() if tied else (("output.weight", (40, 8)),)),
    ):
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    head = 50 * 8 if tied else 40 * 8
    cost = token_cost(path)
    assert (cost.layer_macs, cost.head_macs) == (64 + 128, head)
    assert cost.bytes == 4 * (64 + 128 + head)
    assert cost.prefill_macs(512) == 192 + head / 512
