"""Compares prompt and decode speed of llama.cpp and this project on one GGUF file, in turns on the same machine.

    python benchmarks/compare_llamacpp.py MODEL.gguf --python PY [--prompt 512] [--generate 128] [--rounds 5]

PY is a Python that has llama-cpp-python. Prints the medians and their ratios as one JSON line; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.model_runner import ModelRunner
from mistralrs.loading.pipeline import BLOCK_SIZE, LoadPlan, load_gguf
from mistralrs.ops.backend import resolve

PEER = """
import json, sys, time
import llama_cpp as L
path, prompt, generate, threads = sys.argv[1], *map(int, sys.argv[2:5])
L.llama_backend_init()
model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
params = L.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = prompt + generate + 64, 2048, 512
params.n_threads = params.n_threads_batch = threads
context = L.llama_init_from_model(model, params)
batch = L.llama_batch_init(2048, 0, 1)
def run(tokens, start):
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, int(i == len(tokens) - 1)
    assert L.llama_decode(context, batch) == 0
    L.llama_synchronize(context)
token = lambda i: (7 * i) % 30000 + 100
run([token(i) for i in range(16)], 0)
for line in sys.stdin:
    L.llama_memory_clear(L.llama_get_memory(context), True)
    started = time.perf_counter(); run([token(i) for i in range(prompt)], 0); filled = time.perf_counter() - started
    L.llama_memory_clear(L.llama_get_memory(context), True)
    run([token(0)], 0)
    started = time.perf_counter()
    for i in range(generate): run([token(i)], 1 + i)
    print(json.dumps([prompt / filled, generate / (time.perf_counter() - started)]), flush=True)
"""


def token(i: int) -> int:
    return (7 * i) % 30000 + 100


class Ours:
    """Runs the engine's path below the scheduler, with logits of the last position, as llama_decode gives them."""

    def __init__(self, path: Path, threads: int, precision: str) -> None:
        backend = resolve("cpu", threads=threads).backend
        self.served_by = backend.name
        model = load_gguf(path, backend, LoadPlan(max_seqs=1, max_batch_tokens=512, precision=precision))
        self._runner = ModelRunner(model.decoder, vocab_size=model.spec.vocab_size)
        self._groups = model.limits.kv_groups

    def run(self, tokens: list[int], start: int) -> None:
        for begin in range(0, len(tokens), 512):
            part = tokens[begin : begin + 512]
            groups, rows = self._groups, [len(part) - 1]
            batch = Batch.of_one_sequence(
                part, start + begin, groups=groups, block_size=BLOCK_SIZE, logits_indices=rows
            )
            self._runner.forward(batch, CancelFlag())

    def measure(self, prompt: int, generate: int) -> tuple[float, float]:
        started = time.perf_counter()
        self.run([token(i) for i in range(prompt)], 0)
        filled = time.perf_counter() - started
        self.run([token(0)], 0)
        started = time.perf_counter()
        for i in range(generate):
            self.run([token(i)], 1 + i)
        return prompt / filled, generate / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", required=True, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fast", "default", "high"), default="default")
    args = parser.parse_args()
    command = [args.python, "-c", PEER, str(args.model), str(args.prompt), str(args.generate), str(args.threads)]
    ours = Ours(args.model, args.threads, args.precision)
    ours.measure(args.prompt, 16)
    rows: list[tuple[float, float, float, float]] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        for _ in range(args.rounds):
            peer.stdin.write("\n")
            peer.stdin.flush()
            theirs = json.loads(peer.stdout.readline())
            rows.append((*ours.measure(args.prompt, args.generate), *theirs))
            print(" ".join(f"{value:9.1f}" for value in rows[-1]), file=sys.stderr)
        peer.stdin.close()
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    names = (f"pp{args.prompt}", f"tg{args.generate}")
    result = {
        name: {
            "ours": round(medians[i], 1),
            "llama.cpp": round(medians[i + 2], 1),
            "ratio": round(medians[i] / medians[i + 2], 2),
        }
        for i, name in enumerate(names)
    }
    print(json.dumps({"served_by": ours.served_by, "threads": args.threads, "precision": args.precision, **result}))


if __name__ == "__main__":
    main()
