"""The comparison of engines: its table and its pictures show what was measured; no figure is judged here."""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any, Self

import gguf
import numpy as np
import pytest

from benchmarks import compare, plots
from benchmarks.roofline import token_cost

COST = {"bytes": 1e9, "layer_macs": 1e9, "head_macs": 5.12e10}


def record(engine: str, file: str = "a.gguf", *, threads: int = 2, number: int = 0, **cells: float) -> dict[str, Any]:
    return {
        "file": file, "engine": engine, "round": number, "threads": threads, "bytes": 2e9, "plain_read": 4e10,
        "best_read": 5e10, "int8_peak": 1e12, "cost": COST, "cells": cells, "load_s": 1.0, "peak_bytes": 3e9,
    }  # fmt: skip


def test_a_cell_has_its_ratio_to_the_fastest_and_its_share_of_the_limit() -> None:
    records = [record("ours", tg128=20.0, pp512=500.0, number=number) for number in range(2)]
    records += [record("llama.cpp", tg128=10.0, pp512=125.0), record("OpenVINO", tg128=5.0, pp512=1000.0)]
    lines = list(compare.report(records))
    [decode] = [line for line in lines if line.startswith("| tg128")]
    [prompt] = [line for line in lines if line.startswith("| pp512")]
    assert decode.endswith("| 2.00 | 50% (40% of the best read) |"), decode  # 20 * 1 GB of 40 and of 50 GB/s
    assert prompt.endswith("| 0.50 | 55% |"), prompt  # 500 * (1 + 51.2 / 512) GMAC of 1,000
    assert any("plain read 40.0 GB/s (best 50.0), int8 peak 1000 GMAC/s; rounds: 2" in line for line in lines)


@pytest.mark.parametrize(
    ("cell", "milliseconds"), [("tg128@2000", 25), ("b1", 25), ("b4", 6.25), ("b32", 1), ("pp2", 12.5), ("pp512", 1.25)]
)
def test_a_step_reads_the_weights_once_for_all_its_tokens(cell: str, milliseconds: float) -> None:
    """Of 1 GB, or 1 GMAC a token and 128 a prompt."""
    cost = compare.TokenCost(1e9, 1e9, 1.28e11) if cell.startswith("pp") else compare.TokenCost(1e9, 1e9, 0)
    if cell == "pp2":
        cost = compare.TokenCost(1e9, 1e9, 0)
    assert 1000 * compare.least_time(cell, cost, read=4e10, peak=1e12) == pytest.approx(milliseconds)


def test_threads_have_tables_of_their_own() -> None:
    lines = list(compare.report([record("ours", tg128=1.0, threads=1), record("ours", tg128=2.0)]))
    assert [line[0] for line in lines if "threads; plain read" in line] == ["1", "2"]


def test_rounds_are_shown_where_memory_had_two_speeds() -> None:
    def at(read: float, found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "limits": {"tg128": (read, 1e12, read)}}

    slow = [at(3.5e10, record("ours", tg128=50.25, pp512=1.0)), at(3.6e10, record("ik_llama.cpp", tg128=9.755))]
    lines = list(compare.report(slow))
    assert not any("by rounds" in line for line in lines)
    fast = [at(6e10, record("ours", number=1, tg128=80.0)), record("ik_llama.cpp", number=1)]
    lines = list(compare.report([*slow, *fast]))
    [title] = [place for place, line in enumerate(lines) if line.startswith("tg128 by rounds")]
    assert lines[title + 2 :] == [
        "| round | ours | ik_llama.cpp |",
        "| --- | --- | --- |",
        "| 1 | 50.2 [35] | 9.76 [36] |",
        "| 2 | 80.0 [60] | - |",
    ]


def test_pictures_are_drawn_of_what_was_measured() -> None:
    records = [record("ours", tg128=20.0, **{"tg128@2000": 15.0, "tg128@8000": 10.0}), record("llama.cpp", tg128=5.0)]
    [depth] = plots.pictures(records)
    assert (depth.name, depth.lines) == ("depth", {"ours, a": [(0, 1.0), (2000, 0.75), (8000, 0.5)]})
    larger = {**record("ours", "b.gguf", tg32=8.0), "cost": {**COST, "bytes": 2e9}}
    named = {picture.name: picture for picture in plots.pictures([*records, larger])}
    assert named["decode-size"].lines["ours"] == [(1.0, 20.0), (2.0, 8.0)]
    assert named["decode-size"].limit == [(1.0, 40.0), (2.0, 20.0)]


LLAMA_BENCH = """#!{python}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert (options["-m"], options["-t"], options["-o"]) == ("/m.gguf", "2", "json"), options
rates = {{("512", "0", None): 500, ("0", "128", None): 50, ("0", "0", "2000,128"): 20}}
print(json.dumps([{{"avg_ts": rates[options["-p"], options["-n"], options.get("-gp")]}}]))
"""


def test_ik_llama_cpp_is_asked_through_its_binary(tmp_path: Path) -> None:
    binary = tmp_path / "llama-bench"
    binary.write_text(LLAMA_BENCH.format(python=sys.executable))
    binary.chmod(0o755)
    args = argparse.Namespace(threads=2, timeout=60)
    peer = compare.Peer("ik_llama.cpp's llama-bench", sys.executable, {"LLAMA_BENCH": str(binary)})
    cells = ("pp512", "tg128", "tg128@2000", "b16")
    found = compare.launched(peer, Path("/m.gguf"), cells, args)
    assert found.pop("peak_bytes") > 1e6, "that of the binary"
    assert found == {"cells": {"pp512": 500, "tg128": 50, "tg128@2000": 20, "b16": None}}, "it says nothing of its load"
    failed = compare.launched(peer, Path("/m.gguf"), ("pp64",), args)
    assert (failed["cells"], "CalledProcessError" in failed["error"]) == ({"pp64": None}, True)


IK_LLAMA = """
import sys, types
lib = types.ModuleType("ik_llama_cpp._ctypes_api")
def decode(context, batch):
    several = len({item[0] for item in batch.seq_id[: batch.n_tokens]}) > 1
    assert context == "plain" or not several
    assert all(batch.n_seq_id[i] == 1 for i in range(batch.n_tokens))
    assert 1 <= sum(batch.logits[: batch.n_tokens]) <= 16
    return 0
def batch(tokens, embedding, sequences):
    zeros = lambda: [0] * tokens
    return types.SimpleNamespace(
        n_tokens=0, token=zeros(), pos=zeros(), n_seq_id=zeros(), logits=zeros(), seq_id=[[0] for _ in range(tokens)])
def load(path, params):
    assert (path, params.repack_tensors) == (b"/m.gguf", True)
    return "model"
def context(model, params):
    assert (model, params.n_seq_max, params.n_threads, params.n_threads_batch) == ("model", 16, 2, 2)
    return "flash" if params.flash_attn else "plain"
lib.llama_backend_init = lambda: None
lib.llama_model_default_params = lib.llama_context_default_params = types.SimpleNamespace
lib.llama_model_load_from_file, lib.llama_init_from_model = load, context
lib.llama_batch_init, lib.llama_decode, lib.llama_kv_cache_clear = batch, decode, lambda context: None
lib.llama_free = lambda context: None
package = types.ModuleType("ik_llama_cpp")
package.__path__ = []
sys.modules.update({"ik_llama_cpp": package, "ik_llama_cpp._ctypes_api": lib})
"""


def test_ik_llama_cpp_is_run_through_its_bindings(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(IK_LLAMA)
    args = argparse.Namespace(threads=2, timeout=60)
    peer = compare.Peer("ik_llama.cpp", sys.executable, {"PYTHONPATH": str(tmp_path)})
    found = compare.launched(peer, Path("/m.gguf"), ("pp32", "tg4", "tg4@20", "b16"), args)
    assert "error" not in found, found
    assert all(found["cells"][cell] > 0 for cell in ("pp32", "tg4", "tg4@20", "b16"))
    assert found["load_s"] > 0


ENGINE = """
import sys, types
runner = types.ModuleType("mistralrs")
class Runner:
    def __init__(self, which): pass
    def send_completion_request(self, asked):
        print(len(asked.prompt.split()), asked.max_tokens, file=sys.stderr)
        usage = types.SimpleNamespace(avg_prompt_tok_per_sec=2.0, avg_compl_tok_per_sec=3.0)
        return types.SimpleNamespace(usage=usage)
runner.Runner, runner.CompletionRequest = Runner, lambda **fields: types.SimpleNamespace(**fields)
runner.Which = types.SimpleNamespace(GGUF=lambda **fields: None)
sys.modules["mistralrs"] = runner
"""


def test_a_slow_engine_gets_fewer_tokens_and_its_figures_are_marked(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(ENGINE)
    args = argparse.Namespace(threads=2, timeout=60)
    peer = compare.Peer("mistral.rs", sys.executable, {"PYTHONPATH": str(tmp_path)}, longest=32)
    found = compare.launched(peer, Path("/m.gguf"), ("pp512", "pp16", "tg128@2000", "tg128", "b16"), args)
    assert found["cells"] == {"pp512": 2.0, "pp16": 2.0, "tg128@2000": None, "tg128": 3.0, "b16": None}
    assert found["shortened"] == {"pp512": 32, "tg128@2000": 32, "tg128": 32, "b16": 32}
    lines = list(compare.report([record("ours", pp512=500.0), {**record("mistral.rs"), **found}]))
    [prompt] = [line for line in lines if line.startswith("| pp512")]
    assert "| 2.00 (2.00 to 2.00) with 32 tokens | 250.00 |" in prompt, "the ratio is of what was measured"
    assert "| b16 | - | - |" in "\n".join(lines)


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = tmp_path / "m.gguf", []
    model.write_bytes(b"")

    class Limits:
        def __init__(self, *_: object) -> None: ...

        def measure(self) -> tuple[float, float]:
            return 40.0, 1000.0

        def sustained_read(self, _: float) -> float:
            return 38.0

    def measured(peers: list[compare.Peer], _: Path, cells: tuple[str, ...], *__: object) -> list[dict[str, Any]]:
        asked.append([peer.name for peer in peers])
        if len(asked) == 1:
            raise KeyboardInterrupt
        found: dict[str, Any] = {
            "cells": dict.fromkeys(cells, 10.0),
            "plain_read": 4e10,
            "int8_peak": 1e12,
            "best_read": 5e10,
        }
        failed = {**found, "cells": dict.fromkeys(cells), "error": "exit code 1: no memory"}
        return [failed if peer.name == "llama.cpp" and len(asked) == 2 else found for peer in peers]

    for name, fake in {"Limits": Limits, "NativeBackend": lambda threads: None, "measured": measured}.items():
        monkeypatch.setattr(compare, name, fake)
    monkeypatch.setattr(compare, "token_cost", lambda path: compare.TokenCost(**COST))
    out = tmp_path / "reports" / "c"
    command = ["compare", str(model), "--quick", "--rounds", "1", "--llamacpp", "py", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(KeyboardInterrupt):
        compare.main()
    for _ in range(3):  # one fails in the second, the third measures it, the last has nothing to do
        compare.main()
    assert asked == [["ours", "llama.cpp"], ["ours", "llama.cpp"], ["llama.cpp"]]
    assert [each["engine"] for each in json.loads(out.with_suffix(".json").read_text())] == ["ours", "llama.cpp"]
    assert "| tg128 | 10.0 (10.0 to 10.0) |" in out.with_suffix(".md").read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ["c.json", "c.md"]


def test_each_cell_runs_in_all_engines_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may be fast in one minute and slow in the next: each cell has limits of its own."""
    events, reads = [], iter([40.0, 42.0, 30.0, 30.0, 60.0, 60.0, 20.0, 22.0])

    class Running:
        def __init__(self, peer: compare.Peer, *_: object, widest: int) -> None:
            self.name, self.cells = peer.name, dict[str, float]()
            events.append(("load", self.name, widest))

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            events.append(("gone", self.name))

        def run(self, cell: str) -> None:
            events.append((cell, self.name))
            self.cells[cell] = 10.0

        def end(self) -> dict[str, Any]:
            return {"cells": self.cells, "peak_bytes": 1e9}

    limits = types.SimpleNamespace(sustained_read=lambda _: next(reads), measure=lambda: (50.0, 1000.0))
    monkeypatch.setattr(compare, "Running", Running)
    monkeypatch.setattr(compare, "launched", lambda *_, forget: {"load_s": 2.0, "first_token_s": 3.0, "cells": {}})
    monkeypatch.setattr(compare, "PAUSE_S", 0)
    peers = [compare.Peer(name, "py", {}) for name in ("ours", "llama.cpp")]
    args = argparse.Namespace(threads=2, timeout=60)
    ours, other = compare.measured(peers, Path("/m.gguf"), ("tg128", "b16"), limits, args)  # type: ignore[arg-type]
    assert events == [
        ("load", "ours", 16), ("load", "llama.cpp", 16), ("tg128", "ours"), ("tg128", "llama.cpp"), ("b16", "ours"),
        ("b16", "llama.cpp"), ("gone", "llama.cpp"), ("gone", "ours"),
    ]  # fmt: skip
    assert ours["limits"] == {"tg128": [4.1e10, 1e12, 5e10], "b16": [6e10, 1e12, 6e10]}
    assert (ours["plain_read"], ours["cold_load_s"], other["limits"]["b16"][0]) == (5.05e10, 2.0, 2.1e10)
    table = list(compare.report([{**record("ours"), **ours}, {**record("llama.cpp"), **other}]))
    [decode] = [line for line in table if line.startswith("| tg128")]
    assert decode.endswith("| 1.00 | 24% (20% of the best read) |"), "10 times 1 GB of 41 and of 50 GB/s"


def test_engines_are_gone_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for cells: without an end they would stay, and so would the comparison."""
    (tmp_path / "sitecustomize.py").write_text(ENGINE)
    processes, start = [], compare.subprocess.Popen

    def popen(*args: Any, **options: Any) -> Any:
        processes.append(start(*args, **options))
        return processes[-1]

    def broken(_: float) -> float:
        raise MemoryError

    monkeypatch.setattr(compare.subprocess, "Popen", popen)
    monkeypatch.setattr(compare, "launched", lambda *_, forget: {})
    peers = [compare.Peer("mistral.rs", sys.executable, {"PYTHONPATH": str(tmp_path)})] * 2
    limits = types.SimpleNamespace(sustained_read=broken)
    with pytest.raises(MemoryError):
        compare.measured(peers, Path("/m.gguf"), ("tg4",), limits, argparse.Namespace(threads=2, timeout=60))  # type: ignore[arg-type]
    assert [process.poll() for process in processes] == [-9, -9]


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
