"""The queue of an answer's events: when its thread is woken, and that it loses none of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from mistralrs.api.python_api.answer_stream import EventQueue
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Delta, Event, Failed, Finished, Handle, Usage
from mistralrs.errors import EngineError

USAGE = Usage(1, 0, 2, 0.0, 0.0, 0.0, 0)
REQUEST = Request((1,), SamplingParams())
END = Finished("stop", USAGE)


class ScriptedEngine:
    """Takes requests whose events a test delivers."""

    def __init__(self) -> None:
        self.deliver: list[Callable[[Event], None]] = []
        self.cancelled: list[int] = []

    def submit_to(self, deliver: Callable[[Event], None], request: Request, weights: Mapping[str, float] | None) -> Any:
        place = len(self.deliver)
        self.deliver.append(deliver)
        return Handle(lambda: self.cancelled.append(place), deliver)


def delta(text: str) -> Delta:
    return Delta(text, (1,), ())


def queue_of(engine: ScriptedEngine, count: int, *, as_they_come: bool = False) -> EventQueue:
    return EventQueue(cast(Any, engine), [REQUEST] * count, None, as_they_come=as_they_come)


def test_a_stream_gets_each_event_as_it_comes() -> None:
    engine = ScriptedEngine()
    events = iter(queue_of(engine, 2, as_they_come=True))
    engine.deliver[0](delta("a"))
    assert next(events) == (0, delta("a"))
    engine.deliver[1](delta("b"))
    assert next(events) == (1, delta("b"))


def test_a_whole_answer_wakes_its_thread_at_the_ends_alone() -> None:
    engine = ScriptedEngine()
    queue = queue_of(engine, 2)
    read: list[tuple[int, Event]] = []
    woken = threading.Semaphore(0)

    def wait() -> None:
        for each in queue:
            read.append(each)
            if isinstance(each[1], Finished):
                woken.release()

    thread = threading.Thread(target=wait)
    thread.start()
    sent: list[tuple[int, Event]] = [(0, delta("a")), (1, delta("b")), (0, delta("c")), (0, END)]
    for place, event in sent:
        assert not read
        engine.deliver[place](event)
    assert woken.acquire(timeout=60)
    rest: list[tuple[int, Event]] = [(1, delta("d")), (1, END)]
    for place, event in rest:
        assert read == sent
        engine.deliver[place](event)
    thread.join(60)
    assert read == [*sent, *rest]


@pytest.mark.parametrize("as_they_come", [False, True])
def test_a_failure_comes_at_once(as_they_come: bool) -> None:
    engine = ScriptedEngine()
    queue = queue_of(engine, 2, as_they_come=as_they_come)
    failed = Failed(EngineError("it broke"), USAGE)
    engine.deliver[0](delta("a"))
    engine.deliver[1](failed)
    events = iter(queue)
    assert [next(events), next(events)] == [(0, delta("a")), (1, failed)]  # the first answer is still open
    queue.cancel()
    assert engine.cancelled == [0, 1]
