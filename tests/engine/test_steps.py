"""Steady steps of decode, one or several in a row, are one call of the kernels' library, for their forward passes and
their sampling, and allocate little."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mistralrs_kernels import cpu

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Finished
from mistralrs.grammar.grammar_text import GrammarText
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
@pytest.mark.parametrize(
    ("options", "grammar", "expected_calls"),
    [
        ({}, None, 1),
        ({"logprobs": 3, "dry_multiplier": 0.8, "logit_bias": ((5, 1.0),)}, None, 1),
        ({"stop": ("a text that never comes",)}, None, 1),
        ({}, GrammarText("regex", "(.|\n)*"), 2),  # its masks are computed beside the forward pass
    ],
    ids=["chat", "penalties", "stop", "grammar"],
)
def test_a_steady_step_calls_the_library_once_and_allocates_little(
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    sequences: int,
    options: dict[str, Any],
    grammar: GrammarText | None,
    expected_calls: int,
) -> None:
    """In company of a request with a grammar, all are sampled after the pass, and each step is made by itself."""
    sampling = replace(CHAT, **options)
    calls: Counter[str] = Counter()
    library = CountingLibrary(cpu.load(), calls)
    gc.collect()  # an earlier model would let go of its threads in a step
    monkeypatch.setattr(cpu, "load", lambda: library)
    steps: list[tuple[Counter[str], int]] = []
    load_options = LoadOptions(threads=1, max_seqs=sequences, max_draft=0)
    with LocalModel.load(ModelSource(None, tiny_llama, None, None), load_options) as model:
        answer(model, sequences, sampling, grammar=grammar, tokens=2)

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
            ends = answer(model, sequences, sampling, grammar=grammar, tokens=40 if grammar else 320)
        finally:
            tracemalloc.stop()
    assert all(isinstance(end, Finished) for end in ends)
    steady = steps[-30:-2]
    assert [counts for counts, _ in steady] == [Counter(mrs_run=expected_calls)] * len(steady)
    assert max(allocated for _, allocated in steady) <= MOST


def answer(
    model: LocalModel, sequences: int, sampling: SamplingParams, *, grammar: GrammarText | None, tokens: int
) -> list[object]:
    """Answers in each sequence; the first has the grammar."""
    streams = []
    for seed in range(sequences):
        params = replace(sampling, max_tokens=tokens, seed=seed, ignore_eos=True)
        streams.append(model.engine.submit(Request(tuple(range(3, 9)), params, grammar=None if seed else grammar)))
    return [list(stream)[-1] for stream in streams]
