"""Steps in a row: one call of the library, and the answers of single steps."""

from __future__ import annotations

import math
import random
from collections import Counter
from ctypes import c_int32
from pathlib import Path
from typing import Any

import pytest
import torch
from mistralrs_kernels import cpu

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine import multi_step
from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Delta, Event, Finished
from mistralrs.engine.multi_step import MultiStep
from mistralrs.engine.sampling.native_sampler import NativeSampler, _Prepared
from mistralrs.engine.sampling.sampler import Sampler
from mistralrs.engine.sampling.sampling_input import SampledToken, SamplingInput
from mistralrs.errors import EngineError
from mistralrs.ops.buffer import Buffer
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.row_sampler import SamplingRows
from mistralrs.ops.workspace import Sizes, StepArgs
from tests.architectures import Folders
from tests.buffers import buffer_of
from tests.engine.test_steps import CountingLibrary

native = pytest.mark.native


def test_steps_in_a_row_take_as_long_as_readers_may_wait() -> None:
    steps = MultiStep(has_drafts=False)
    assert steps.limit(1) == 1
    steps.on_decode(1, 1, 0.001)
    assert steps.limit(1) == multi_step.MAX_STEPS
    for _ in range(40):
        steps.on_decode(1, 4, 4 * 0.017)
    assert steps.limit(1) == int(multi_step.SECONDS / 0.017)
    for _ in range(40):
        steps.on_decode(1, 1, 1.0)
    assert steps.limit(1) == 1
    for _ in range(40):
        steps.on_decode(1, 1, 0.0)
    assert steps.limit(1) == multi_step.MAX_STEPS


def test_draft_tokens_that_are_of_use_keep_steps_single() -> None:
    steps = MultiStep(has_drafts=True)
    assert steps.limit(1) == 1
    for _ in range(2):
        steps.on_decode(1, 1, 0.001)
    assert steps.limit(1) == 3
    steps.on_drafts(0)
    assert steps.limit(1) == 3
    steps.on_drafts(2)
    assert steps.limit(1) == 1
    steps.on_decode(1, 100, 0.1)
    assert steps.limit(1) == multi_step.MAX_STEPS
    steps.on_prefill()
    assert steps.limit(1) == 1


def test_steps_of_more_sequences_are_measured_before_they_are_made_in_a_row() -> None:
    steps = MultiStep(has_drafts=False)
    for _ in range(40):
        steps.on_decode(1, 8, 0.008)
    assert [steps.limit(count) for count in (1, 2, 64)] == [multi_step.MAX_STEPS, 1, 1]
    steps.on_decode(64, 1, 0.025)
    assert [steps.limit(count) for count in (1, 64, 65)] == [2, 2, 1]
    steps.on_decode(1, 1, 0.001)
    assert steps.limit(1) == multi_step.MAX_STEPS


@native
@pytest.mark.parametrize("seed", range(40))
def test_a_program_goes_on_until_a_token_ends_or_a_call_waits(seed: int) -> None:
    """The program has no operation but the sampling: each step has the same logits, and numbers of its own."""
    backend = NativeBackend(threads=2)
    sampler = NativeSampler(64, backend.row_sampler(), lambda: Sampler(64))
    logits = buffer_of(torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)))
    params = SamplingParams(temperature=1.5, seed=seed, repetition_penalty=1.3, frequency_penalty=0.5, repeat_last_n=3)
    texts = [[1, 2, 3, 4, 5], [9]]
    single = [sampler.sample(logits, [SamplingInput(params, text) for text in texts])]
    for _ in range(5):
        texts = [[*text, token_of(row)] for text, row in zip(texts, single[-1], strict=True)]
        single.append(sampler.sample(logits, [SamplingInput(params, text) for text in texts]))
    ends = [{token_of(single[3][1])}, set[int](), {token_of(single[5][0])}][seed % 3]
    last = next((place for place, step in enumerate(single) if ends.intersection(map(token_of, step))), 5)
    for waits in (False, True):
        args = steps_of_two(positions=(14, 0))
        inputs = [SamplingInput(params, text[:-5], ends=frozenset(ends)) for text in texts]
        prepared = sampler.prepare(logits, inputs, num_steps=6, wait_flag=c_int32(waits))
        assert prepared is not None
        args.sampling = prepared.rows
        backend.program([], args)()
        made = prepared.results()
        assert made == (single[:1] if waits else single[: last + 1])
        places = [14 + len(made) - 1, len(made) - 1]
        assert list(args.arrays["positions"].values[:2]) == places
        assert list(args.arrays["seq_lens"].values[:2]) == [place + 1 for place in places]
        assert list(args.arrays["tokens"].values[:2]) == ([7, 8] if waits or not last else [*map(token_of, made[-2])])
        slots = [
            16 * (TABLES[group][row][place // 16]) + place % 16
            for group in range(2)
            for row, place in enumerate(places)
        ]
        assert [args.arrays["slot_mapping"].values[place] for place in (0, 1, 3, 4)] == slots


TABLES = (((5, 3), (1, 7)), ((2, 9), (8, 4)))
"""A block table for each KV group and each sequence."""


def steps_of_two(positions: tuple[int, int]) -> StepArgs:
    """A step of a token of each of two sequences, with room for three."""
    sizes = Sizes(
        max_tokens=3, max_seqs=3, max_logits=3, max_blocks=2, kv_groups=2,
        hidden=1, q=1, kv=1, ffn=1, vocab=1, rotary=(),
    )  # fmt: skip
    args = StepArgs(sizes)
    args.set(
        tokens=[7, 8],
        positions=positions,
        slot_mapping=[
            [16 * table[0] + place for table, place in zip(tables, positions, strict=True)] for tables in TABLES
        ],
        query_start_loc=[0, 1, 2],
        seq_lens=[place + 1 for place in positions],
        block_tables=TABLES,
        logits_indices=[0, 1],
    )
    return args


def token_of(row: object) -> int:
    assert isinstance(row, SampledToken)
    return row.token


@native
def test_a_step_without_a_token_counts_as_not_made() -> None:
    """The rows of the second step have never been sampled, as behind logits that are not numbers."""
    backend = NativeBackend(threads=1)
    sampler = NativeSampler(64, backend.row_sampler(), lambda: Sampler(64))
    logits = buffer_of(torch.zeros(1, 64))
    prepared = sampler.prepare(logits, [SamplingInput(SamplingParams(), [1])], num_steps=3)
    assert prepared is not None
    backend.row_sampler().run(prepared.rows._replace(num_steps=1))
    [[row]] = prepared.results()
    assert isinstance(row, SampledToken)


@native
def test_steps_behind_an_error_count_as_not_made() -> None:
    """The library sees that a token was sampled, and not that its log-probability is no number."""
    backend = NativeBackend(threads=1)
    sampler = NativeSampler(64, backend.row_sampler(), lambda: Sampler(64))
    inputs = [SamplingInput(SamplingParams(logprobs=0), [1]) for _ in range(2)]
    logits = buffer_of(torch.zeros(2, 64))
    prepared = sampler.prepare(logits, inputs, num_steps=3)
    assert isinstance(prepared, _Prepared)
    args = steps_of_two(positions=(14, 0))
    args.sampling = prepared.rows
    backend.program([], args)()
    assert len(prepared.results()) == 3
    prepared.cells[4].logprob = math.nan
    assert len(prepared.results()) == 2
    prepared.cells[1].logprob = math.nan
    [[first, second]] = prepared.results()
    assert isinstance(first, SampledToken)
    assert isinstance(second, EngineError)


@native
def test_a_call_for_the_engine_ends_steps_in_a_row(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call comes within each pass: all steps are single, though more were planned."""
    monkeypatch.setattr(multi_step, "SECONDS", 10.0)
    with LocalModel.load(ModelSource(None, tiny_llama, None, None), LoadOptions(threads=1, max_draft=0)) as model:
        core, inbox = model.engine._core, model.engine._inbox
        forward, calls, planned = core._executor.forward, Counter[str](), Counter[int]()

        def forward_beside_a_call(
            batch: Batch, cancel_flag: CancelFlag, sampling: SamplingRows | None = None
        ) -> Buffer:
            assert not inbox.wait_flag.value
            inbox.put(lambda: calls.update(made=1))
            assert inbox.wait_flag.value
            planned[sampling.num_steps if sampling else 0] += 1
            return forward(batch, cancel_flag, sampling)

        monkeypatch.setattr(core._executor, "forward", forward_beside_a_call)
        list(model.engine.submit(Request((5, 6), SamplingParams(max_tokens=60, ignore_eos=True))))
        assert planned[multi_step.MAX_STEPS] > 40
        assert planned.total() == calls["made"] == model.engine.stats().steps == 60


def answers(
    path: Path, requests: list[Request], monkeypatch: pytest.MonkeyPatch, *, max_steps: int, **options: Any
) -> tuple[list[tuple[Delta, Finished]], int, int]:
    """The joined events and the end of each request, the calls of the library for steps, and the steps."""
    monkeypatch.setattr(multi_step, "MAX_STEPS", max_steps)
    monkeypatch.setattr(multi_step, "SECONDS", 10.0)  # however busy the machine is
    calls: Counter[str] = Counter()
    library = CountingLibrary(cpu.load(), calls)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "load", lambda: library)
        with LocalModel.load(ModelSource(None, path, None, None), LoadOptions(threads=2, **options)) as model:
            calls.clear()
            streams = [model.engine.submit(request) for request in requests]
            ended = [joined(list(stream)) for stream in streams]
            stats = model.engine.stats()
            assert stats.free_blocks == stats.num_blocks
            model.engine._core.scheduler.check_integrity()
            return ended, calls["mrs_run"], stats.steps


def joined(events: list[Event]) -> tuple[Delta, Finished]:
    *deltas, end = events
    assert isinstance(end, Finished), end
    return Delta.joined([delta for delta in deltas if isinstance(delta, Delta)]), end


def some_requests(seed: int, count: int) -> list[Request]:
    """Requests with sampling of every kind, some of which keep their batch to single steps."""
    draw = random.Random(seed)
    requests = []
    for _ in range(count):
        sampling = SamplingParams(
            temperature=draw.choice([0.0, 0.7, 1.5]),
            top_k=draw.choice([0, 20]),
            top_p=draw.choice([1.0, 0.8]),
            seed=draw.randrange(1000),
            max_tokens=draw.randrange(1, 40),
            frequency_penalty=draw.choice([0.0, 0.5]),
            repetition_penalty=draw.choice([1.0, 1.2]),
            repeat_last_n=draw.choice([2, 64]),
            xtc_probability=draw.choice([0.0, 0.5]),
            logprobs=draw.choice([None, 0, 3]),
            stop=draw.choice(
                [
                    (),
                    (),
                    ("e",),
                    ("ab", "x"),
                ]
            ),
            stop_token_ids=tuple(draw.sample(range(288), draw.choice([0, 40]))),
            ignore_eos=True,
            min_tokens=draw.choice([0, 0, 0, 3]),
            dry_multiplier=draw.choice([0.0, 0.0, 0.0, 0.8]),
        )
        prompt = tuple(draw.randrange(3, 280) for _ in range(draw.randrange(1, 30)))
        requests.append(Request(prompt, sampling))
    return requests


@native
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "mixtral"])
def test_answers_are_those_of_single_steps(name: str, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of these have layers with a window, in whose blocks later tokens take the places of earlier ones."""
    saved = 0
    for seed in range(6):
        requests = some_requests(seed, 1 + seed % 3)
        for max_draft in (0, 4):
            options: dict[str, Any] = {"max_draft": max_draft, "max_seqs": 3, "prefix_cache_n": seed % 2 * 4}
            single, calls, steps = answers(folders(name), requests, monkeypatch, max_steps=1, **options)
            assert calls >= steps
            several, calls, steps = answers(folders(name), requests, monkeypatch, max_steps=8, **options)
            for (delta, end), (expected, expected_end) in zip(several, single, strict=True):
                assert delta == expected
                assert (end.reason, end.stop_string) == (expected_end.reason, expected_end.stop_string)
                assert end.usage.completion_tokens == expected_end.usage.completion_tokens
            saved += steps - calls
    assert saved > 60
