"""How far logits are from those of a file's own weights in float32: ours with each precision, and llama.cpp's.

    python -m benchmarks.divergence MODEL.gguf... [--store ffn_down=Q4_K]... [--text FILE] [--tokens 1000]
        [--precisions fast,default,high] [--kv auto,q8_0] [--llamacpp PY] [--out docs/reports/divergence]

The other side is `transformers` in float32, which decodes the file with the `gguf` package; no code of this project
computes its numbers. PY is a Python that has llama-cpp-python. ``--store`` compares a copy of each file in which the
matrices of a role are stored in another type, ``--kv`` measures each precision with these values of
``--kv-cache-dtype``. The text is one sequence, by default the GNU General Public License, version 3, as Debian has it.
Writes OUT.json after each file, in which others of earlier runs stay, and OUT.md. It measures no time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.logits import PRECISIONS, logits_of, plan_of
from mistralrs.loading.pipeline import load_gguf
from mistralrs.ops.backend import Backend, resolve
from mistralrs.quant.types import TYPES

WORKER = Path(__file__).with_name("divergence_worker.py")
TEXT = Path("/usr/share/common-licenses/GPL-3")
ROWS = 64
"""Positions that are computed at once beside a vocabulary."""
Rows = NDArray[np.float32]


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    store = args.out.with_suffix(".json")
    records: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    backend = resolve("cpu").backend
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in args.models:
            for change in args.store or ("",):
                file = with_type(path, change, folder, backend) if change else path
                found = compared(file, args, folder, backend)
                records = [record for record in records if record["file"] != file.name] + [found]
                args.out.parent.mkdir(parents=True, exist_ok=True)
                store.write_text(json.dumps(records, indent=1) + "\n")
    args.out.with_suffix(".md").write_text("\n".join(report(records)) + "\n")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=lambda text: Path(text).resolve(), nargs="+")
    parser.add_argument("--store", action="append", metavar="ROLE=TYPE")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=list(PRECISIONS))
    parser.add_argument("--kv", type=lambda text: text.split(","), default=["auto"])
    parser.add_argument("--llamacpp", metavar="PY")
    parser.add_argument("--out", type=Path, default=Path("docs/reports/divergence"))
    return parser.parse_args(given)


def compared(path: Path, args: argparse.Namespace, folder: Path, backend: Backend) -> dict[str, Any]:
    """Returns the record of a file: the divergence of each engine and precision."""
    engines: dict[str, dict[str, float]] = {}
    oracle = None
    for precision, kv in itertools.product(args.precisions, args.kv):
        engine = precision if kv == "auto" else f"{precision}, KV in {kv}"
        print(f"{path.name}: {engine}", file=sys.stderr, flush=True)
        model = load_gguf(path, backend, plan_of(precision, kv))
        if oracle is None:
            ids = model.tokenizer.encode(args.text.read_text(encoding="utf-8"), special=True, bos=True)[: args.tokens]
            oracle = float_logits(path, ids, folder / "oracle.npy")
        engines[engine] = divergence(oracle, logits_of(model, ids))
        del model
    if args.llamacpp:
        engines["llama.cpp"] = divergence(oracle, [llamacpp_logits(args.llamacpp, path, ids, folder)])
    facts = {"file": path.name, "text": args.text.name, "tokens": len(ids), "backend": backend.name}
    return {**facts, "engines": engines}


def float_logits(path: Path, ids: Sequence[int], target: Path) -> Rows:
    """Returns (ids, vocabulary) logits of `transformers` in float32, which stay in a file."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.eval()
    shape = (len(ids), model.config.get_text_config().vocab_size)
    rows: Rows = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=shape)
    with torch.inference_mode():
        hidden = model.model(torch.tensor([list(ids)])).last_hidden_state[0]
        for start in range(0, len(ids), ROWS):
            rows[start : start + ROWS] = model.lm_head(hidden[start : start + ROWS]).numpy()
    return rows


def llamacpp_logits(python: str, path: Path, ids: Sequence[int], folder: Path) -> Rows:
    """Returns (ids, vocabulary) logits of llama.cpp. Raises ``CalledProcessError``."""
    wanted, target = folder / "ids.json", folder / "llamacpp.npy"
    wanted.write_text(json.dumps(list(ids)))
    subprocess.run([python, str(WORKER), str(path), str(wanted), str(target)], check=True)
    rows: Rows = np.load(target, mmap_mode="r")
    return rows


def divergence(oracle: Rows, found: Iterator[Rows] | Sequence[Rows]) -> dict[str, float]:
    """Returns the mean and the 99th percentile of KL(oracle, found) in nats, and the share of equal best tokens."""
    values: list[float] = []
    same: list[bool] = []
    for piece in found:
        for start in range(0, len(piece), ROWS):
            place, rows = len(values), piece[start : start + ROWS]
            width = min(oracle.shape[1], rows.shape[1])
            p, q = (log_softmax(each[:, :width]) for each in (oracle[place : place + len(rows)], rows))
            values += (np.exp(p) * (p - q)).sum(-1).tolist()
            same += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert len(values) == len(oracle)
    return {"mean": float(np.mean(values)), "p99": float(np.percentile(values, 99)), "top1": float(np.mean(same))}


def log_softmax(logits: Rows) -> NDArray[np.float64]:
    exact = logits.astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    result: NDArray[np.float64] = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    return result


def with_type(path: Path, change: str, folder: Path, backend: Backend) -> Path:
    """Writes a copy of a file in which the matrices of a role, ``ffn_down=Q4_K``, are stored in another type."""
    role, _, name = change.partition("=")
    target = folder / f"{path.stem}-{role}-{name}.gguf"
    type_, reader = TYPES[name], gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(
                key, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None
            )
    changed = 0
    for tensor in reader.tensors:
        data, stored = tensor.data, tensor.tensor_type
        if tensor.name.endswith(f".{role}.weight"):
            values = np.ascontiguousarray(gguf.quants.dequantize(data, stored), dtype=np.float32)
            rows, columns = values.shape
            packed = backend.quantize(tensor.name, type_, memoryview(values))
            data = np.frombuffer(packed, np.uint8).reshape(rows, type_.row_bytes(columns))
            stored, changed = gguf.GGMLQuantizationType[name], changed + 1
        writer.add_tensor(tensor.name, data, raw_dtype=stored)
    if not changed:
        raise SystemExit(f"{path} has no matrix of the role {role}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def report(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Returns the lines of the table."""
    yield "# Divergence from a file's own weights"
    yield ""
    yield "`python -m benchmarks.divergence`: KL in nats from `transformers` with the same weights in float32, ours by"
    yield "precision; the ratio is the mean over llama.cpp's on the same file. In a file named `ffn_down-Q4_K` these"
    yield "matrices were stored anew in that type."
    yield ""
    yield "| File | | mean KL | 99th percentile | same best token | of llama.cpp's |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for record in records:
        engines = record["engines"]
        begin = f"{record['file']}, {record['tokens']} tokens of {record['text']}"
        theirs = engines.get("llama.cpp")
        for engine, found in engines.items():
            ratio = f"{found['mean'] / theirs['mean']:.2f}" if theirs and found is not theirs else ""
            shown = f"{found['mean']:.6f} | {found['p99']:.5f} | {found['top1']:.1%}"
            yield f"| {begin} | {engine} | {shown} | {ratio} |"
            begin = ""


if __name__ == "__main__":
    main()
