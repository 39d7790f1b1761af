"""Runs the cells of `compare.py` in one engine: a program of its own, which imports that engine alone.

    PYTHON compare_worker.py ENGINE MODEL.gguf THREADS WIDEST

Reads cells, a line each, until its input ends; WIDEST is the number of sequences of the largest batch. A cell is
``pp512`` (tokens/s of a prompt of 512), ``tg128@2000`` (tokens/s of decoding 128 tokens behind 2,000) or ``b16`` (total
tokens/s of 16 sequences that decode ``STEPS`` tokens each); ``pp512:32`` takes 32 tokens instead of 512. Writes a JSON
line after the load and a first token, one when it is ready, one for each cell, and one with the peak of its memory.
It imports nothing of this project for others.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

STEPS = 48
"""Tokens that each sequence of a batch decodes."""
MAX_CONTEXT = 8192 + 256


def token(i: int) -> int:
    """The i-th token of all prompts."""
    return (7 * i) % 30000 + 100


def prompt(length: int, shift: int = 0) -> list[int]:
    """A prompt of so many tokens; prompts with other shifts have no common beginning."""
    return [token(shift * 1009 + i) for i in range(length)]


class Ours:
    """This project's engine, sampling included, without prefix reuse and draft tokens."""

    def __init__(self, path: str, threads: int, widest: int) -> None:
        pathlib, options = importlib.import_module("pathlib"), importlib.import_module("mistralrs.api.load_options")
        local = importlib.import_module("mistralrs.api.local_model")
        self._config = importlib.import_module("mistralrs.engine.config")
        source = options.ModelSource(None, pathlib.Path(path), None, None)
        loading = options.LoadOptions(threads=threads, max_seqs=max(widest, 1), prefix_cache_n=0, max_draft=0)
        self._model = local.LocalModel.load(source, loading)

    def prefill(self, length: int, shift: int = 0) -> float:
        [usage] = self._run(length, 1, sequences=1, first=shift)
        return float(length / usage.prompt_s)

    def decode(self, count: int, depth: int, sequences: int) -> float:
        usages = self._run(max(depth, 1), count + 1, sequences=sequences)
        return float(sequences * count / max(usage.completion_s for usage in usages))

    def _run(self, length: int, count: int, *, sequences: int, first: int = 0) -> list[Any]:
        sampling = self._config.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        prompts = [tuple(prompt(length, first + place)) for place in range(sequences)]
        requests = [self._config.Request(each, sampling) for each in prompts]
        streams = [self._model.engine.submit(request) for request in requests]
        return [list(stream)[-1].usage for stream in streams]


class LlamaCpp:
    """llama.cpp through llama-cpp-python's bindings of its C interface; without sampling."""

    def __init__(self, path: str, threads: int, widest: int) -> None:
        self._lib = lib = importlib.import_module("llama_cpp")
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = max(MAX_CONTEXT, 256 * widest), 2048, 512
        params.n_seq_max, params.kv_unified = widest, True
        params.n_threads = params.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, params)
        self._batch = lib.llama_batch_init(2048, 0, 1)

    def prefill(self, length: int, shift: int = 0) -> float:
        self._clear()
        started = time.perf_counter()
        self._fill(prompt(length, shift), 0)
        return length / (time.perf_counter() - started)

    def decode(self, count: int, depth: int, sequences: int) -> float:
        self._clear()
        depth = max(depth, 1)
        for sequence in range(sequences):
            self._fill(prompt(depth, sequence), sequence)
        started = time.perf_counter()
        for step in range(count):
            self._run([(token(step), depth + step, sequence) for sequence in range(sequences)], logits=sequences)
        return sequences * count / (time.perf_counter() - started)

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _fill(self, tokens: list[int], sequence: int) -> None:
        for start in range(0, len(tokens), 2048):
            part = tokens[start : start + 2048]
            self._run([(each, start + place, sequence) for place, each in enumerate(part)], logits=1)

    def _run(self, items: list[tuple[int, int, int]], *, logits: int) -> None:
        batch = self._batch
        batch.n_tokens = len(items)
        for i, (each, position, sequence) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = each, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, int(i >= len(items) - logits)
        if self._lib.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")
        self._synchronize()

    def _synchronize(self) -> None:
        self._lib.llama_synchronize(self._context)


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp through ik-llama-cpp-python's bindings of its C interface; without sampling. It repacks weights for
    its kernels when it loads them (its ``-rtr``). Several sequences are decoded without its flash attention, which ends
    the process (0.1.5)."""

    def __init__(self, path: str, threads: int, widest: int) -> None:
        self._lib = lib = importlib.import_module("ik_llama_cpp._ctypes_api")
        self._threads, self._widest = threads, widest
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.repack_tensors = True
        self._model = lib.llama_model_load_from_file(path.encode(), params)
        self._context = self._context_with(flash_attention=True)
        self._batch = lib.llama_batch_init(2048, 0, 1)

    def decode(self, count: int, depth: int, sequences: int) -> float:
        if sequences == 1:
            return super().decode(count, depth, sequences)
        usual, self._context = self._context, self._context_with(flash_attention=False)
        try:
            return super().decode(count, depth, sequences)
        finally:
            self._lib.llama_free(self._context)
            self._context = usual

    def _context_with(self, *, flash_attention: bool) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = max(MAX_CONTEXT, 256 * self._widest), 2048, 512
        params.n_seq_max, params.flash_attn = self._widest, flash_attention
        params.n_threads = params.n_threads_batch = self._threads
        return self._lib.llama_init_from_model(self._model, params)

    def _clear(self) -> None:
        self._lib.llama_kv_cache_clear(self._context)

    def _synchronize(self) -> None:
        """Its processor code has ended when a call returns."""


class OpenVino:
    """OpenVINO GenAI's pipelines, which read the GGUF file themselves; greedy."""

    def __init__(self, path: str, threads: int, widest: int) -> None:
        self._genai, self._openvino = importlib.import_module("openvino_genai"), importlib.import_module("openvino")
        self._numpy = importlib.import_module("numpy")
        self._pipeline = self._genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)

    def prefill(self, length: int, shift: int = 0) -> float:
        return 1000 * length / float(self._run(length, 1, 1, first=shift).get_ttft().mean)

    def decode(self, count: int, depth: int, sequences: int) -> float:
        metrics = self._run(max(depth, 1), count + 1, sequences)
        milliseconds = float(metrics.get_generate_duration().mean) - float(metrics.get_ttft().mean)
        return 1000 * sequences * count / milliseconds

    def _run(self, length: int, count: int, sequences: int, *, first: int = 0) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        config.apply_chat_template = False
        rows = [prompt(length, first + place) for place in range(sequences)]
        ids = self._numpy.array(rows, dtype=self._numpy.int64)
        mask = self._numpy.ones_like(ids)
        inputs = self._genai.TokenizedInputs(self._openvino.Tensor(ids), self._openvino.Tensor(mask))
        return self._pipeline.generate(inputs, config).perf_metrics


class MistralRs:
    """The wheel of mistral.rs, which counts its own tokens a second; prompts are texts of about the length."""

    def __init__(self, path: str, threads: int, widest: int) -> None:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        self._lib = lib = importlib.import_module("mistralrs")
        folder, _, name = path.rpartition("/")
        self._runner = lib.Runner(lib.Which.GGUF(quantized_model_id=folder or ".", quantized_filename=name))

    def prefill(self, length: int, shift: int = 0) -> float:
        return float(self._usage(length, 1).avg_prompt_tok_per_sec)

    def decode(self, count: int, depth: int, sequences: int) -> float | None:
        return float(self._usage(max(depth, 1), count + 1).avg_compl_tok_per_sec) if sequences == 1 else None

    def _usage(self, length: int, count: int) -> Any:
        # A new first word each time, so that no prefix is found again.
        text = f"{time.perf_counter_ns() % 1000} " + " the" * max(length - 4, 1)
        asked = self._lib.CompletionRequest(model="m", prompt=text, max_tokens=count, temperature=0.0)
        return self._runner.send_completion_request(asked).usage


class LlamaBench:
    """The binary `llama-bench` of ik_llama.cpp. It loads the model for each cell."""

    def __init__(self, path: str, threads: int, widest: int) -> None:
        self._command = [os.environ["LLAMA_BENCH"], "-m", path, "-t", str(threads), "-r", "1", "-o", "json"]

    def prefill(self, length: int, shift: int = 0) -> float:
        return self._rate("-p", str(length), "-n", "0")

    def decode(self, count: int, depth: int, sequences: int) -> float | None:
        if sequences > 1:
            return None
        # -gp DEPTH,COUNT: decode behind a prompt, which is not timed; llama.cpp's own llama-bench calls it -d
        return self._rate("-p", "0", *(("-n", "0", "-gp", f"{depth},{count}") if depth > 1 else ("-n", str(count))))

    def _rate(self, *options: str) -> float:
        ran = subprocess.run([*self._command, *options], capture_output=True, text=True, check=True)
        return float(json.loads(ran.stdout)[0]["avg_ts"])


ENGINES: dict[str, Callable[[str, int, int], Any]] = {
    "ours": Ours,
    "llama.cpp": LlamaCpp,
    "OpenVINO": OpenVino,
    "mistral.rs": MistralRs,
    "ik_llama.cpp": IkLlamaCpp,
    "ik_llama.cpp's llama-bench": LlamaBench,
}


PROGRAMS = ("ik_llama.cpp's llama-bench",)
"""Engines that are a process for each cell, and load the model in it."""


def run_cell(engine: Any, cell: str, longest: int | None) -> Any:
    """Tokens a second; None for a cell that the engine cannot run here. ``longest``: tokens at most."""
    if cell.startswith("b"):
        return engine.decode(min(STEPS, longest or STEPS), 1, int(cell[1:]))
    count, _, depth = cell[2:].partition("@")
    tokens = min(int(count), longest or int(count))
    if cell.startswith("pp"):
        engine.prefill(tokens, shift=9)  # the first prompt of a length is slower in most engines
        return engine.prefill(tokens)
    return engine.decode(tokens, int(depth or 0), 1) if longest is None or int(depth or 0) <= longest else None


def length_of(cell: str) -> int:
    """Tokens of the prompt or the answer that a cell measures."""
    return STEPS if cell.startswith("b") else int(cell[2:].partition("@")[0])


def peak_bytes(name: str) -> int:
    """Returns the most memory that the engine had."""
    if name in PROGRAMS:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    with open("/proc/self/status", encoding="ascii") as status:  # ru_maxrss begins with that of the parent
        [peak] = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")]
    return peak


def main() -> None:
    name, path, threads, widest = sys.argv[1:]
    started = time.perf_counter()
    engine = ENGINES[name](path, int(threads), int(widest))
    loaded = time.perf_counter() - started
    if name not in PROGRAMS:
        engine.prefill(16)
        print(json.dumps({"load_s": loaded}), flush=True)
        engine.decode(4, 0, 1)
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        cell, _, limit = line.strip().partition(":")
        longest = int(limit) if limit else None
        news = {"cell": cell, "tokens_s": run_cell(engine, cell, longest)}
        if longest and longest < length_of(cell):
            news["of"] = longest
        print(json.dumps(news), flush=True)
    print(json.dumps({"peak_bytes": peak_bytes(name)}), flush=True)
    os._exit(0)  # some engines hang or complain when the interpreter ends


if __name__ == "__main__":
    main()
