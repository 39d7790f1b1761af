"""Measures tokens a second and time to first token over HTTP, beside the engine in process, `Runner` and other servers.

    python -m benchmarks.server_throughput MODEL.gguf [--llamacpp PY] [--openvino PY] [--requests 256]

The first PY is a Python that has llama-cpp-python[server], the second one with openvino-genai, whose
ContinuousBatchingPipeline runs in its process. All get the same requests, greedy, one candidate after the other;
nothing else should run. Prints one JSON line; progress goes to stderr. Run it from the project's root.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mistralrs import CompletionRequest, CompletionResponse, Runner, Which
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta, Failed, Finished
from tests.soak.http_load import Ask, Heard, run_streams, workload

OPENVINO = """
import json, sys, time
import openvino_genai as g
path, streams = sys.argv[1], int(sys.argv[2])
requests = json.load(sys.stdin)
scheduler = g.SchedulerConfig(); scheduler.cache_size = 4; scheduler.max_num_seqs = streams
pipe = g.ContinuousBatchingPipeline(path, scheduler, "CPU")
def config(n):
    c = g.GenerationConfig(); c.max_new_tokens = n; c.do_sample = False; return c
pipe.generate(["warm up"], [config(4)])

def whole():
    results = pipe.generate([p for p, _ in requests], [config(n) for _, n in requests])
    tokenizer = pipe.get_tokenizer()
    return sum(tokenizer.encode(result.m_generation_ids[0]).input_ids.shape[1] for result in results), []

def streamed():
    tokens, first, waiting, running = 0, [], list(enumerate(requests)), {}
    waiting.reverse()
    while waiting or running:
        while waiting and len(running) < streams:
            number, (prompt, n) = waiting.pop()
            running[number] = time.perf_counter(), pipe.add_request(number, prompt, config(n))
        pipe.step()
        for number, (started, handle) in list(running.items()):
            while handle.can_read():
                [output] = handle.read().values()
                if started is not None and output.generated_ids:
                    first.append(time.perf_counter() - started)
                    started = None
                    running[number] = None, handle
                tokens += len(output.generated_ids)
            if handle.get_status() != g.GenerationStatus.RUNNING:
                del running[number]
    return tokens, first

started = time.perf_counter()
tokens, first = {"whole": whole, "streamed": streamed}[sys.argv[3]]()
print(json.dumps({"seconds": time.perf_counter() - started, "tokens": tokens, "first": first}))
"""


def main() -> None:
    args = _arguments()
    requests = list(itertools.islice(workload(7, max_tokens=args.max_tokens), args.requests))
    results: dict[str, dict[str, float]] = {}
    if "in process" in args.only:
        results["in process"] = _in_process(args.model, requests, args.streams)
    if "runner" in args.only:
        results["runner"] = _with_runner(args.model, requests, args.streams)
    if "http" in args.only:
        command = [sys.executable, "-m", "mistralrs_cli", "--port", "{port}", "--max-seqs", str(args.streams), "auto"]
        results["http"] = _over_http([*command, str(args.model)], requests, args.streams)
    if args.llamacpp:
        command = [args.llamacpp, "-m", "llama_cpp.server", "--model", str(args.model), "--port", "{port}"]
        # this server would end an answer when the next request comes
        extra = ["--n_ctx", "4096", "--n_threads", "2", "--n_threads_batch", "2", "--interrupt_requests", "false"]
        # it serves one request at a time: a part of the requests gives its rate
        some = requests[: max(args.streams, args.requests // 8)]
        results["llama.cpp"] = _over_http([*command, *extra], some, args.streams)
    if args.openvino:
        for way in ("whole", "streamed"):
            results[f"openvino, {way}"] = _openvino(args.openvino, args.model, requests, args.streams, way)
    print(json.dumps({"streams": args.streams, "requests": args.requests, **results}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--llamacpp", metavar="PY")
    parser.add_argument("--openvino", metavar="PY")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--only", nargs="+", default=["in process", "runner", "http"])
    return parser.parse_args()


def _in_process(path: Path, requests: list[Ask], streams: int) -> dict[str, float]:
    """Runs the same requests in process, with as many threads as streams over HTTP."""
    source = ModelSource(architecture=None, path=path, repo=None, filename=None)
    with LocalModel.load(source, LoadOptions(max_seqs=streams)) as model:

        def serve(request: Ask) -> Heard:
            started, heard = time.perf_counter(), Heard()
            prompt = model.tokenizer.encode(request.prompt, special=False, bos=model.tokenizer.add_bos)
            for event in model.complete(prompt, SamplingParams(temperature=0, max_tokens=request.max_tokens)):
                if isinstance(event, Delta) and event.text:
                    heard.pieces.append(time.perf_counter() - started)
                elif isinstance(event, Finished):
                    heard.tokens = event.usage.completion_tokens
                elif isinstance(event, Failed):
                    heard.error = event.error.message
            heard.seconds = time.perf_counter() - started
            return heard

        serve(requests[0])
        started = time.perf_counter()
        with ThreadPoolExecutor(streams) as pool:
            heard = list(pool.map(serve, requests))
        return _figures(heard, time.perf_counter() - started)


def _with_runner(path: Path, requests: list[Ask], streams: int) -> dict[str, float]:
    """Runs the same requests from as many threads on one ``Runner``, whose answers come whole."""
    with Runner(Which.GGUF(quantized_filename=str(path)), max_seqs=streams) as runner:

        def serve(request: Ask) -> Heard:
            started, heard = time.perf_counter(), Heard()
            asked = CompletionRequest(request.prompt, max_tokens=request.max_tokens, temperature=0)
            answer = runner.send_completion_request(asked)
            assert isinstance(answer, CompletionResponse)
            heard.seconds = time.perf_counter() - started
            heard.pieces.append(heard.seconds)
            heard.tokens = answer.usage.completion_tokens
            return heard

        serve(requests[0])
        started = time.perf_counter()
        with ThreadPoolExecutor(streams) as pool:
            heard = list(pool.map(serve, requests))
        return _figures(heard, time.perf_counter() - started)


def _over_http(command: list[str], requests: list[Ask], streams: int) -> dict[str, float]:
    with _server(command) as port:
        asyncio.run(run_streams("127.0.0.1", port, iter(requests[:1]), streams=1, count=1))
        started = time.perf_counter()
        answers = asyncio.run(
            run_streams("127.0.0.1", port, iter(requests), streams=streams, count=len(requests)),
        )
        return _figures([heard for _, heard in answers], time.perf_counter() - started)


@contextmanager
def _server(command: list[str]) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [word.format(port=port) for word in command]
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            _wait(port, server)
            yield port
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                if json.load(answer)["data"]:
                    return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                raise SystemExit("the server ended before it was ready") from None
        time.sleep(0.2)
    raise SystemExit("the server did not become ready")


def _openvino(python: str, path: Path, requests: list[Ask], streams: int, way: str) -> dict[str, float]:
    """Runs them in OpenVINO's process. ``way``: "whole" gives it all at once and awaits whole answers, "streamed" keeps
    ``streams`` of them open and reads their tokens after each of its steps."""
    text = json.dumps([[request.prompt, request.max_tokens] for request in requests])
    command = [python, "-c", OPENVINO, str(path), str(streams), way]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, input=text, text=True, check=True).stdout)
    figures = {
        "tokens_per_s": found["tokens"] / found["seconds"],
        **_first(found["first"]),
        "seconds": found["seconds"],
    }
    print(figures, file=sys.stderr)
    return {name: round(value, 2) for name, value in figures.items()}


def _figures(heard: list[Heard], seconds: float) -> dict[str, float]:
    failed = [one.error for one in heard if one.error]
    if failed:
        print(f"{len(failed)} requests failed: {failed[0]}", file=sys.stderr)
    figures = {
        "tokens_per_s": sum(one.tokens for one in heard) / seconds,
        **_first([one.pieces[0] for one in heard if one.pieces]),
        "seconds": seconds,
        "failed": float(len(failed)),
    }
    print(figures, file=sys.stderr)
    return {name: round(value, 2) for name, value in figures.items()}


def _first(seconds: list[float]) -> dict[str, float]:
    """The median and the 95th percentile of the seconds to a first token; nothing where there are none."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {"first_p50_s": statistics.median(ordered), "first_p95_s": ordered[int(len(ordered) * 0.95)]}


if __name__ == "__main__":
    main()
