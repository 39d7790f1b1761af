"""The speed of a model: tokens a second of prompts and of generation, alone and side by side.

The module defines the tests and their tables; ``mistralrs.api`` runs the model.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from mistralrs import __version__
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Failed, Finished, Usage
from mistralrs.errors import EngineError
from mistralrs_cli.arguments.invocation import BenchJob
from mistralrs_cli.benchmark.old_results import Difference, OldResult, comparison_lines
from mistralrs_cli.model import Model
from mistralrs_cli.terminal.output import Streams, byte_size, clean_line, generation_rate, is_terminal, per_second

FIRST_TOKEN = 1000
"""The first token id of the prompt test's prompt."""
GENERATION_PROMPT = "Rust"
WARM_UP_TOKENS = 8
WIDTH = 160
"""The width of a table in characters, if no terminal shows it."""


@dataclass(frozen=True, slots=True)
class Test:
    """One measurement: ``kind`` is "tg" (generate ``size`` tokens) or "pp" (a prompt of ``size`` tokens)."""

    kind: str
    size: int
    prompt: tuple[int, ...]
    max_tokens: int

    def rate(self, usage: Usage) -> float:
        """Returns the tokens a second of one stream."""
        if self.kind == "tg":
            return generation_rate(usage)
        return per_second(usage.prompt_tokens, usage.prompt_s)


@dataclass(frozen=True, slots=True)
class Result:
    """A test at one concurrency: tokens a second of one stream, a value for each repetition."""

    test: Test
    concurrency: int
    rates: tuple[float, ...]


def run_bench(model: Model, job: BenchJob, streams: Streams) -> int:
    """Runs the tests and writes a table, or JSON lines, for each concurrency; returns the exit code."""
    tests = _tests(model, job)
    _explain(model, job, streams.stderr)
    for test in tests:
        warm_up = replace(test, max_tokens=min(test.max_tokens, WARM_UP_TOKENS))
        _run_side_by_side(model, warm_up, job.sampling, 1)
    measured: list[Result] = []
    for concurrency in job.concurrency:
        results = [_measure(model, test, job, concurrency) for test in tests]
        if job.json:
            _write_json(model, results, streams.stdout, job.old)
        else:
            _write_table(model, results, streams.stdout)
        measured += results
    if job.old is not None and not job.json:
        rows = [(_name(each.test), each.concurrency, _old(job.old, each), each.rates) for each in measured]
        streams.stdout.writelines(
            f"{clean_line(line) if line.startswith('old') else line}\n" for line in comparison_lines(rows)
        )
        streams.stdout.flush()
    return 0


def _name(test: Test) -> str:
    return f"{test.kind}{test.size}"


def _old(old: Mapping[tuple[str, int], OldResult], result: Result) -> OldResult | None:
    return old.get((_name(result.test), result.concurrency))


def _tests(model: Model, job: BenchJob) -> list[Test]:
    """Returns the tests: generation first, then the prompt; a size of 0 leaves a test out."""
    tokenizer = model.tokenizer
    tests = []
    if job.n_gen:
        prompt = tuple(tokenizer.encode(GENERATION_PROMPT, special=False, bos=tokenizer.add_bos))
        tests.append(Test("tg", job.n_gen, prompt, max_tokens=job.n_gen))
    if job.n_prompt:
        ids = tuple((FIRST_TOKEN + index) % model.vocab_size for index in range(job.n_prompt))
        tests.append(Test("pp", job.n_prompt, ids, max_tokens=1))
    return tests


def _measure(model: Model, test: Test, job: BenchJob, concurrency: int) -> Result:
    """Repeats a test. A repetition is as fast as its slowest stream, so that rate x concurrency is the throughput."""
    rates = []
    for _ in range(job.repetitions):
        usages = _run_side_by_side(model, test, job.sampling, concurrency)
        rates.append(min(test.rate(usage) for usage in usages))
    return Result(test, concurrency, tuple(rates))


def _run_side_by_side(model: Model, test: Test, sampling: SamplingParams, concurrency: int) -> list[Usage]:
    sampling = replace(sampling, max_tokens=test.max_tokens, ignore_eos=True)
    running = [model.complete(test.prompt, sampling) for _ in range(concurrency)]
    try:
        return [_usage(list(stream)[-1], test) for stream in running]
    finally:
        for stream in running:
            stream.cancel()


def _usage(end: object, test: Test) -> Usage:
    """Returns the usage of a stream that ended with ``end``; an end before the last token is no measurement."""
    if isinstance(end, Failed):
        raise end.error
    if not isinstance(end, Finished) or end.usage.completion_tokens != test.max_tokens:
        raise EngineError(f"{test.kind} {test.size}: a stream did not run to its end")
    return end.usage


def _explain(model: Model, job: BenchJob, stderr: TextIO) -> None:
    sampling, info = job.sampling, model.info
    stderr.write(
        f"bench: a warm-up first; prefix cache off, the end of text is ignored; sampling is included (temperature "
        f"{sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}, penalties "
        f"{sampling.frequency_penalty} and {sampling.presence_penalty}); {info.threads} threads, precision "
        f"{info.precision}, KV cache in {info.kv_cache_dtype} ({byte_size(info.kv_token_bytes)} a token); t/s and ms/t "
        "are those of one stream, throughput/s of all together\n"
    )
    stderr.flush()


def _write_json(
    model: Model, results: Sequence[Result], stdout: TextIO, old: Mapping[tuple[str, int], OldResult] | None
) -> None:
    for result in results:
        record: dict[str, object] = {
            "test": _name(result.test),
            "concurrency": result.concurrency,
            "tok_s_median": statistics.median(result.rates),
            "tok_s_mean": statistics.fmean(result.rates),
            "tok_s_sd": statistics.stdev(result.rates) if len(result.rates) > 1 else 0.0,
            "tok_s_all": list(result.rates),
            "tok_s_total": statistics.median(result.rates) * result.concurrency,
            "threads": model.info.threads,
            "precision": model.info.precision,
            "kv_cache_dtype": model.info.kv_cache_dtype,
            "kv_token_bytes": model.info.kv_token_bytes,
            "isa": model.info.backend.partition(" ")[2],
            "model": model.info.name,
            "version": __version__,
        }
        if old is not None and (known := _old(old, result)):
            change = Difference(known.rates, result.rates)
            record |= {"old_tok_s_mean": statistics.fmean(known.rates), "change_percent": change.percent}
            record["verdict"] = change.verdict
        stdout.write(json.dumps(record) + "\n")
    stdout.flush()


def _write_table(model: Model, results: Sequence[Result], stdout: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("model", "backend", "test"):
        table.add_column(name, no_wrap=True)
    for name in ("t/s", "ms/t", "concurrency", "throughput/s"):
        table.add_column(name, no_wrap=True, justify="right")
    for result in results:
        milliseconds = [1000 * per_second(1, rate) for rate in result.rates]
        table.add_row(
            clean_line(model.info.name),
            model.info.backend,
            f"{result.test.kind} {result.test.size}",
            spread(result.rates),
            spread(milliseconds),
            str(result.concurrency),
            str(statistics.fmean(result.rates) * result.concurrency),
        )
    width = None if is_terminal(stdout) else WIDTH
    console = Console(file=stdout, width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as drawn:  # a console that writes by itself would end the program at a closed stdout
        console.print(table)
    stdout.write(drawn.get())
    stdout.flush()


def spread(values: Sequence[float]) -> str:
    """Returns mean and population standard deviation."""
    return f"{statistics.fmean(values):.3f}±{statistics.pstdev(values):.3f}"
