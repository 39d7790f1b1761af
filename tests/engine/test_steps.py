"""A steady step of decode calls the kernels' library for its forward pass and its sampling, and allocates little."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from mistralrs_kernels import cpu

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Finished
from mistralrs.engine.sampling.native_sampler import NativeSampler
from mistralrs.ops.native_row_sampler import NativeRowSampler
from tests.engine.fakes import after_each_step

pytestmark = pytest.mark.native

CHAT = SamplingParams(
    temperature=0.1, top_k=32, top_p=0.1, frequency_penalty=0.1, presence_penalty=0.1, repetition_penalty=1.1
)
MOST = 64 << 10
"""Bytes that a step may allocate at once."""


class CountingLibrary:
    """The kernels' library, whose calls are counted by name."""

    def __init__(self, library: Any, calls: Counter[str]) -> None:
        self._library, self._calls = library, calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return counting(getattr(self._library, name), name, self._calls)


def counting(call: Callable[..., Any], name: str, calls: Counter[str]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        calls[name] += 1
        return call(*arguments)

    return run


@pytest.mark.parametrize("sequences", [1, 3])
def test_a_steady_step_calls_the_library_twice_and_allocates_little(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, sequences: int
) -> None:
    calls: Counter[str] = Counter()
    library = CountingLibrary(cpu.load(), calls)
    monkeypatch.setattr(cpu, "load", lambda: library)
    steps: list[tuple[Counter[str], int]] = []
    options = LoadOptions(threads=1, max_seqs=sequences, max_draft=0)
    with LocalModel.load(ModelSource(None, tiny_llama, None, None), options) as model:
        answer(model, sequences, tokens=2)
        sampler = model.engine._sampler
        assert isinstance(sampler, NativeSampler)
        rows = cast(NativeRowSampler, sampler._row_sampler)
        rows._sample = counting(rows._sample, "sample", calls)

        def after_step() -> None:
            current, peak = tracemalloc.get_traced_memory()
            steps.append((calls.copy(), peak - start[0]))
            calls.clear()
            tracemalloc.reset_peak()
            start[0] = current

        start = [0]
        tracemalloc.start()
        try:
            after_each_step(model.engine, after_step)
            ends = answer(model, sequences, tokens=40)
        finally:
            tracemalloc.stop()
    assert all(isinstance(end, Finished) for end in ends)
    steady = steps[-30:-2]
    assert [counts for counts, _ in steady] == [Counter(mrs_run=1, sample=1)] * len(steady)
    assert max(allocated for _, allocated in steady) <= MOST


def answer(model: LocalModel, sequences: int, *, tokens: int) -> list[object]:
    params = [replace(CHAT, max_tokens=tokens, seed=seed, ignore_eos=True) for seed in range(sequences)]
    streams = [model.engine.submit(Request(tuple(range(3, 9)), sampling)) for sampling in params]
    return [list(stream)[-1] for stream in streams]
