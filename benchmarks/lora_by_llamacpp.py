"""llama.cpp with and without a LoRA adapter, in a process of a Python with llama-cpp-python."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = """
import ctypes, json, sys, time
import llama_cpp as L
path, adapter, threads, prompt, depth = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
L.llama_backend_init()
model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
params = L.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = prompt + 64, prompt, prompt
params.n_threads = params.n_threads_batch = threads
context = L.llama_init_from_model(model, params)
loaded = L.llama_adapter_lora_init(model, adapter.encode())
assert loaded, "llama.cpp does not load the adapter"
memory = L.llama_get_memory(context)
batch = L.llama_batch_init(prompt, 0, 1)
def step(count, start):
    batch.n_tokens = count
    for i in range(count):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = 7 + (start + i) % 100, start + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, int(i == count - 1)
    started = time.perf_counter()
    assert L.llama_decode(context, batch) == 0
    L.llama_synchronize(context)
    return time.perf_counter() - started
def prefill():
    L.llama_memory_clear(memory, True)
    return step(prompt, 0)
def decode(steps):
    L.llama_memory_clear(memory, True)
    step(depth, 0)
    taken = []
    for _ in range(steps):
        taken.append(step(1, depth))
        L.llama_memory_seq_rm(memory, 0, depth, -1)
    return min(taken)
for line in sys.stdin:
    acts, what, steps = json.loads(line)
    adapters = (L.llama_adapter_lora_p_ctypes * 1)(loaded)
    assert L.llama_set_adapters_lora(context, adapters, int(acts), (ctypes.c_float * 1)(1.0)) == 0
    L.llama_memory_clear(memory, True)
    step(2, 0)  # its graph is made anew for another set of adapters
    step(1, 2)
    print(json.dumps(prefill() if what == "prefill" else decode(steps)), flush=True)
"""


class LlamaCppWithLora:
    """A running llama.cpp; a context manager."""

    def __init__(self, python: str, model: Path, adapter: Path, *, threads: int, prompt: int, depth: int) -> None:
        """``prompt``: tokens of ``prefill``. ``depth``: tokens before the one of ``decode``."""
        numbers = map(str, (threads, prompt, depth))
        self._process = subprocess.Popen(
            [python, "-c", PROGRAM, str(model), str(adapter), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def prefill(self, *, acts: bool) -> float:
        """Seconds of a prompt; ``acts``: with the adapter."""
        return self._ask([acts, "prefill", 1])

    def decode(self, *, acts: bool, steps: int) -> float:
        """Seconds of the fastest of ``steps`` steps of one token."""
        return self._ask([acts, "decode", steps])

    def _ask(self, question: list[object]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("llama.cpp has ended: its Python needs llama-cpp-python 0.3.36, and a model it reads")
        seconds: float = json.loads(answer)
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
