"""Draft tokens of one sequence that are computed in parts: each part only if the draft tokens before it were right."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int32
from functools import partial
from pathlib import Path

import pytest
import torch

from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.draft_gain import PART
from mistralrs.engine.sampling.native_sampler import NativeSampler
from mistralrs.engine.sampling.sampler import Sampler
from mistralrs.engine.sampling.sampling_input import SampledToken, SamplingInput
from mistralrs.engine.scheduler import Plan
from mistralrs.ops.native_backend import NativeBackend
from mistralrs.ops.workspace import Sizes, StepArgs
from tests.architectures import Folders
from tests.buffers import buffer_of
from tests.engine.test_multi_step import joined, token_of

native = pytest.mark.native

TABLES = ((5, 3, 6), (2, 9, 4))
"""The block table of the sequence for each KV group."""


def step_of(tokens: Sequence[int], start: int) -> StepArgs:
    """A step of one sequence's tokens from position ``start`` on."""
    sizes = Sizes(
        max_tokens=30, max_seqs=2, max_logits=30, max_blocks=3, kv_groups=2,
        hidden=1, q=1, kv=1, ffn=1, vocab=1, rotary=(),
    )  # fmt: skip
    args = StepArgs(sizes)
    places = range(start, start + len(tokens))
    args.set(
        tokens=list(tokens),
        positions=list(places),
        slot_mapping=[[16 * table[place // 16] + place % 16 for place in places] for table in TABLES],
        query_start_loc=[0, len(tokens)],
        seq_lens=[start + len(tokens)],
        block_tables=[[list(table)] for table in TABLES],
        logits_indices=list(range(len(tokens))),
    )
    return args


@native
@pytest.mark.parametrize("seed", range(40))
def test_a_part_follows_one_that_was_right(seed: int) -> None:
    """The program has no operation but the sampling: each part has the same logits."""
    draw = random.Random(seed)
    backend = NativeBackend(threads=1 + seed % 2)
    sampler = NativeSampler(64, backend.row_sampler(), lambda: Sampler(64))
    num_parts, start = draw.choice([2, 3]), draw.randrange(20)
    right = draw.sample(range(64), PART)
    logits = torch.zeros(PART, 64)
    logits[range(PART), right] = 9.0
    tokens = [1, *(right * num_parts)[: PART * num_parts - 1]]
    wrong = draw.choice([None, *range(1, len(tokens))])
    if wrong is not None:
        tokens[wrong] = (tokens[wrong] + 1) % 64
    end = draw.choice([None, None, right[-1]])
    waits = draw.random() < 0.2
    made = num_parts if wrong is None else (wrong - 1) // PART + 1
    made = 1 if end is not None or waits else made
    ends = frozenset[int]() if end is None else frozenset({end})
    known = [7] * (start + 1)
    inputs = [
        SamplingInput(SamplingParams(temperature=0.0), [*known, *tokens[1 : place + 1]], ends=ends)
        for place in range(len(tokens))
    ]
    buffer = buffer_of(logits)
    prepared = sampler.prepare(buffer, inputs, num_parts=num_parts, wait_flag=c_int32(waits))
    assert prepared is not None
    args = step_of(tokens, start)
    args.sampling = prepared.rows
    backend.program([], args)()
    assert [[token_of(row) for row in part] for part in prepared.results()] == [right] * made
    assert args.arrays["seq_lens"].values[0] == start + PART * made
    assert list(args.arrays["query_start_loc"].values[:2]) == [0, PART]
    assert list(args.arrays["tokens"].values[: len(tokens)]) == tokens


@native
def test_penalties_and_numbers_of_each_part_are_those_of_its_tokens() -> None:
    """Rows of parts are sampled as rows of one pass are."""
    backend = NativeBackend(threads=2)
    sampler = NativeSampler(64, backend.row_sampler(), lambda: Sampler(64))
    params = SamplingParams(temperature=1.0, seed=3, repetition_penalty=1.3, frequency_penalty=0.5, logprobs=2)
    logits = torch.randn(PART, 64, generator=torch.Generator().manual_seed(5))
    known, tokens = [4, 5, 6], [6]
    for place in range(2 * PART - 1):  # what one pass after the other samples
        text = [*known, *tokens[1:]]
        [row] = sampler.sample(buffer_of(logits[place % PART : place % PART + 1]), [SamplingInput(params, text)])
        tokens.append(token_of(row))
    inputs = [SamplingInput(params, [*known, *tokens[1 : place + 1]]) for place in range(2 * PART)]
    twice = buffer_of(torch.cat([logits, logits]))
    expected = sampler.sample(twice, inputs)
    buffer = buffer_of(logits)
    prepared = sampler.prepare(buffer, inputs, num_parts=2)
    assert prepared is not None
    args = step_of(tokens, 2)
    args.sampling = prepared.rows
    backend.program([], args)()
    first, second = prepared.results()
    assert [*first, *second] == expected
    assert all(isinstance(row, SampledToken) and len(row.top) == 2 for row in second)


def repetitive_requests(seed: int) -> list[Request]:
    """Requests whose prompts repeat tokens, so that there are draft tokens, right and wrong ones."""
    draw = random.Random(seed)
    requests = []
    for _ in range(3):
        period = [draw.randrange(3, 280) for _ in range(draw.choice([1, 3, 40]))]
        sampling = SamplingParams(
            temperature=draw.choice([0.0, 0.0, 0.3]),
            seed=draw.randrange(1000),
            max_tokens=draw.randrange(60, 90),
            frequency_penalty=draw.choice([0.0, 0.05, 0.1, 0.2]),
            logprobs=draw.choice([None, 2]),
            stop=draw.choice([(), ("ab", "x")]),
            stop_token_ids=tuple(draw.sample(range(288), draw.choice([0, 0, 20]))),
            ignore_eos=True,
            dry_multiplier=draw.choice([0.0, 0.0, 0.0, 0.0, 0.8]),
        )
        requests.append(Request(tuple(period * (80 // len(period))), sampling))
    return requests


Commit = Callable[[Plan, Mapping[int, Sequence[int]]], None]


def counted(commit: Commit, counts: Counter[str], plan: Plan, tokens: Mapping[int, Sequence[int]]) -> None:
    """Commits a plan and counts the tokens of a single sequence that has drafts."""
    assert plan.num_steps == 1 or not plan.has_drafts
    assert plan.num_parts == 1 or plan.chunks[0].count == plan.num_parts * PART
    if plan.has_drafts and len(plan.chunks) == 1:
        counts[str(plan.chunks[0].count)] += 1
    commit(plan, tokens)


def spoiled(
    propose: Callable[..., tuple[list[tuple[int, ...]], bool]],
    calls: Counter[str],
    *arguments: object,
    **options: object,
) -> tuple[list[tuple[int, ...]], bool]:
    """The proposals, of which every second has another fourth token."""
    calls["propose"] += 1
    drafts, in_parts = propose(*arguments, **options)
    if calls["propose"] % 2 == 0:
        drafts = [(*draft[:3], (draft[3] + 1) % 280, *draft[4:]) if len(draft) > 3 else draft for draft in drafts]
    return drafts, in_parts


@native
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_answers_are_those_of_whole_steps(name: str, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of these have layers with a window."""
    parts: Counter[str] = Counter()
    for seed in range(8):
        found = []
        for in_parts in (False, True):
            source = ModelSource(None, folders(name), None, None)
            with LocalModel.load(source, LoadOptions(threads=2, max_seqs=2, prefix_cache_n=0)) as model:
                core = model.engine._core
                core._makes_multi_steps = in_parts
                assert core._drafter.gain is not None
                core._drafter.gain = None  # as many draft tokens as there may be
                monkeypatch.setattr(core._drafter, "propose", partial(spoiled, core._drafter.propose, Counter[str]()))
                counts = parts if in_parts else Counter[str]()
                monkeypatch.setattr(core.scheduler, "commit", partial(counted, core.scheduler.commit, counts))
                ended = [joined(list(model.engine.submit(request))) for request in repetitive_requests(seed)]
                stats = model.engine.stats()
                assert stats.free_blocks == stats.num_blocks
                core.scheduler.check_integrity()
            found.append([(delta, end.reason, end.stop_string, end.usage.completion_tokens) for delta, end in ended])
        assert found[0] == found[1]
    assert parts["8"] > 0, "the second part did not follow"
    assert parts["16"] > 0, "both parts were right"


@native
def test_a_call_for_the_engine_comes_between_two_parts(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalModel.load(ModelSource(None, tiny_llama, None, None), LoadOptions(threads=1)) as model:
        core, inbox = model.engine._core, model.engine._inbox
        core._drafter.gain = None
        forward, counts = core._executor.forward, Counter[str]()

        def forward_beside_a_call(*arguments: object) -> object:
            inbox.put(lambda: None)
            return forward(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(core._executor, "forward", forward_beside_a_call)
        monkeypatch.setattr(core.scheduler, "commit", partial(counted, core.scheduler.commit, counts))
        prompt = (5, 6, 7) * 20
        list(model.engine.submit(Request(prompt, SamplingParams(temperature=0.0, max_tokens=80, ignore_eos=True))))
        assert counts[str(PART)]
        assert not counts[str(2 * PART)]
