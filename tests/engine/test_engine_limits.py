"""The engine's limits: the queue, deadlines, failures inside of a step, and the delivery of a step's events
together."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mistralrs.engine.batch import Batch, CancelFlag
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Delta, End, Event, Failed, Finished
from mistralrs.errors import EngineError, QueueFullError, UsageError
from mistralrs.ops.kv_groups import KvGroup
from tests.engine.fakes import Turnstile
from tests.engine.test_engine import CONFIG, PROMPT, SAMPLED, answer, collect, expected_answers, requests, serving

LONG = SamplingParams(ignore_eos=True)


# The queue


@pytest.mark.parametrize(("max_seqs", "max_queue"), [(1, 0), (2, 3)])
def test_a_full_queue_refuses_at_once_and_has_room_again(max_seqs: int, max_queue: int) -> None:
    with serving(replace(CONFIG, max_seqs=max_seqs, max_queue=max_queue)) as (engine, runner):
        turnstile = Turnstile(runner)
        streams = [engine.submit(requests()[0])]
        turnstile.wait()
        streams += [engine.submit(requests()[0]) for _ in range(max_seqs + max_queue - 1)]
        for _ in range(3):
            with pytest.raises(QueueFullError, match=f"{max_queue} requests") as refused:
                engine.submit(requests()[0])
            assert refused.value.code == "queue_full"
        turnstile.let_through(1000)
        assert [collect(stream)[1] for stream in streams] == [expected_answers()[0][0]] * len(streams)
        assert answer(engine, requests()[1]) == expected_answers()[1]


def test_a_queue_is_not_shorter_than_nothing() -> None:
    with pytest.raises(UsageError, match="max_queue"), serving(replace(CONFIG, max_queue=-1)):
        pass


# Deadlines


class Clock:
    """The engine's clock, which stands still until a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for name in ("engine", "engine_core", "open_requests"):
            monkeypatch.setattr(f"mistralrs.engine.{name}.time", SimpleNamespace(perf_counter=lambda: self.now))


def test_a_deadline_ends_what_runs_and_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with serving(replace(CONFIG, max_seqs=1)) as (engine, runner):
        turnstile = Turnstile(runner)
        running = engine.submit(Request(PROMPT, LONG, deadline_s=1.0))
        waiting = engine.submit(Request(PROMPT, LONG, deadline_s=1.0))
        patient = engine.submit(replace(requests()[0], deadline_s=60.0))
        turnstile.wait()
        turnstile.let_through()
        turnstile.wait()
        clock.now += 1.1
        turnstile.let_through(1000)
        for stream, tokens in ((running, 2), (waiting, 0)):
            _, received, end = collect(stream)
            assert isinstance(end, Failed)
            assert isinstance(end.error, EngineError)
            assert (end.error.code, len(received), end.usage.completion_tokens) == ("deadline_exceeded", tokens, tokens)
        assert collect(patient)[1] == expected_answers()[0][0]
        assert engine.stats().free_blocks == engine.stats().num_blocks


def test_each_deadline_counts_from_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        wait = runner.before

        def step(batch: Batch, cancel_flag: CancelFlag) -> None:
            wait(batch, cancel_flag)
            clock.now += 0.01

        runner.before = step
        streams = [engine.submit(Request(PROMPT, LONG, deadline_s=0.075))]
        turnstile.wait()
        for seconds in (0.015, 0.105, 0.045):
            streams.append(engine.submit(Request(PROMPT, LONG, deadline_s=seconds)))
            turnstile.let_through()
            turnstile.wait()
        turnstile.let_through(1000)
        answers = [collect(stream) for stream in streams]
        assert all(isinstance(end, Failed) for _, _, end in answers)
        assert [len(tokens) for _, tokens, _ in answers] == [8, 1, 10, 4]


# Failures inside of a step


def out_of_memory_of_torch(batch: Batch, cancel_flag: CancelFlag) -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def out_of_memory_of_python(batch: Batch, cancel_flag: CancelFlag) -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [out_of_memory_of_torch, out_of_memory_of_python])
def test_out_of_memory_is_reported_and_survived(fail: object) -> None:
    with serving() as (engine, runner):
        usual, runner.before = runner.before, fail  # type: ignore[assignment]
        _, _, end = collect(engine.submit(requests()[0]))
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineError)
        assert end.error.code == "out_of_memory"
        assert end.error.hint
        runner.before = usual
        assert answer(engine, requests()[0]) == expected_answers()[0]


def test_a_sampler_that_fails_ends_its_batch_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = expected_answers()
    with serving() as (engine, _):
        assert answer(engine, requests()[0]) == expected[0]
        with monkeypatch.context() as patch:
            patch.setattr(engine._core._sampler, "sample", lambda logits, inputs, rows: 1 / 0)
            _, tokens, end = collect(engine.submit(requests()[0]))
            assert tokens == []
            assert isinstance(end, Failed)
            assert "ZeroDivisionError" in end.error.message
        assert answer(engine, requests()[1]) == expected[1]
        assert engine.fault is None
    assert "sampling failed" in caplog.text


# Events of a step together


@pytest.mark.parametrize("beside", [False, True])
def test_events_of_a_step_are_delivered_before_after_step_is_called(beside: bool) -> None:
    with serving(delivers_beside=beside) as (engine, runner):
        turnstile = Turnstile(runner)
        delivered: list[tuple[int, Event]] = []
        steps: list[list[tuple[int, Event]]] = []

        def deliver(number: int, event: Event) -> None:
            delivered.append((number, event))

        threads: set[str] = set()
        over = threading.Semaphore(0)

        def after_step() -> None:
            threads.add(threading.current_thread().name)
            if delivered:
                steps.append(delivered.copy())
                delivered.clear()
                for _ in range(sum(isinstance(event, End) for _, event in steps[-1])):
                    over.release()

        engine.after_step = after_step
        for number, length in enumerate((3, 5, 5)):
            sampling = SamplingParams(temperature=0.0, max_tokens=length)
            engine.submit_to(partial(deliver, number), Request(PROMPT, sampling))
            if number == 0:
                turnstile.wait()  # the others are not in the first step
        turnstile.let_through(1000)
        for _ in range(3):
            assert over.acquire(timeout=60)
        assert threads == {"mistralrs-delivery" if beside else "mistralrs-engine"}
        assert [[number for number, _ in step] for step in steps] == [
            [0],
            [0, 1, 2],
            [0, 0, 1, 2],
            [1, 2],
            [1, 2],
            [1, 1, 2, 2],
        ]
        assert sum(isinstance(event, Finished) for step in steps for _, event in step) == 3


@pytest.mark.parametrize("beside", [False, True])
def test_a_caller_that_cannot_take_an_event_ends_the_engine(beside: bool, caplog: pytest.LogCaptureFixture) -> None:
    """All other callers get every event up to then, and an end."""

    def refuse(event: Event) -> None:
        raise KeyError("a defect of the caller")

    with serving(delivers_beside=beside) as (engine, runner):
        turnstile = Turnstile(runner)
        others = [engine.submit(Request(PROMPT, SamplingParams(seed=seed, ignore_eos=True))) for seed in (1, 2)]
        turnstile.wait()  # its events come behind those of the others' first step
        engine.submit_to(refuse, Request(PROMPT, LONG))
        turnstile.let_through(1000)
        for stream in others:
            _, tokens, end = collect(stream)
            assert isinstance(end, Failed)
            assert "the engine died: KeyError" in end.error.message
            assert len(tokens) == end.usage.completion_tokens > 0
        with pytest.raises(EngineError, match="KeyError"):
            engine.submit(requests()[0])
    assert "a defect of the caller" in caplog.text


def test_answers_beside_the_steps_are_those_between_them() -> None:
    sampling = SamplingParams(temperature=0.9, max_tokens=60, logprobs=2)
    asked = [
        Request(PROMPT, replace(sampling, seed=seed, stop=stop)) for seed in (1, 2) for stop in ((), ("a",), ("e", "i"))
    ]
    answers = []
    for beside in (False, True):
        with serving(replace(CONFIG, max_draft=3), habit=4.0, delivers_beside=beside) as (engine, _):
            streams = [engine.submit(request) for request in asked]
            answers.append([_without_times(list(stream)) for stream in streams])
    assert answers[0] == answers[1]
    assert {events[-1].reason for events in answers[0] if isinstance(events[-1], Finished)} == {"length", "stop"}


def _without_times(events: list[Event]) -> list[Event]:
    """The text and its end, wherever steps divided it."""
    *deltas, end = events
    assert isinstance(end, Finished)
    has_text = float(end.usage.first_token_s > 0)
    usage = replace(
        end.usage, prompt_s=0.0, completion_s=0.0, first_token_s=has_text, drafted_tokens=0, accepted_tokens=0
    )
    joined = Delta.joined([delta for delta in deltas if isinstance(delta, Delta)])
    return [joined, replace(end, usage=usage)]


def test_a_handle_cancels_and_its_end_is_delivered() -> None:
    with serving() as (engine, runner):
        turnstile = Turnstile(runner)
        events: list[Event] = []
        over = threading.Event()
        engine.after_step = lambda: over.set() if events else None
        handle = engine.submit_to(events.append, requests()[0])
        turnstile.wait()
        handle.cancel()
        handle.cancel()
        assert over.wait(60)
        (end,) = events
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"


def test_stats_count_steps_and_preemptions() -> None:
    with serving(replace(CONFIG, kv_groups=(KvGroup(14),))) as (engine, runner):
        for stream in [
            engine.submit(replace(request, sampling=replace(SAMPLED, max_tokens=20))) for request in requests()
        ]:
            collect(stream)
        stats = engine.stats()
        assert stats.steps == len(runner.batches)
        assert stats.preemptions > 0
        assert pickle.loads(pickle.dumps(stats)) == stats
