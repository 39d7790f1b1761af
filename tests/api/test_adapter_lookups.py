"""The engine's process looks adapters up for requests: it waits for them beside its messages, and lets go of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from mistralrs.adapters.adapter_slots import AcquiredAdapters
from mistralrs.api.engine_client.engine_messages import AdaptersChanged, Step, unpack
from mistralrs.api.engine_client.engine_server import EngineServer
from mistralrs.api.loaded_adapters.adapter_changes import UnloadAdapter
from mistralrs.api.loaded_adapters.known_adapters import KnownAdapters
from mistralrs.engine.config import Request, RequestAdapter, SamplingParams
from mistralrs.engine.events import AdaptersChosen, Event, Failed, Finished, Handle
from mistralrs.errors import EngineError, MistralrsError, RequestError
from tests.server.process import wait_for

REQUEST = Request((1, 2), SamplingParams())
CHOSEN = {"a": 1.0}
CHOSEN_EVENT = AdaptersChosen(3, ((b"x" * 16, 1.0),))


@dataclass
class Channel:
    """Keeps what is sent."""

    sent: list[Any] = field(default_factory=list)

    def send(self, message: object) -> None:
        self.sent.append(message)

    @property
    def events(self) -> list[tuple[int, Event]]:
        return [unpack(packed) for message in self.sent if isinstance(message, Step) for packed in message.events]


@dataclass
class Adapters:
    """Adapters whose look-up waits until it may go on, and then fails or not."""

    go_on: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    refusal: MistralrsError | None = None
    """The error of submitting."""
    acquired: AcquiredAdapters = field(
        default_factory=lambda: AcquiredAdapters((RequestAdapter(0, b"x" * 16),), generation=3)
    )
    released: int = 0
    submitted: list[Callable[[Event], None]] = field(default_factory=list)

    def acts(self, weights: Mapping[str, float] | None) -> bool:
        return bool(weights)

    def acquire(self, weights: Mapping[str, float] | None) -> AcquiredAdapters:
        assert weights == CHOSEN
        self.go_on.wait(60)
        if self.error is not None:
            raise self.error
        return self.acquired

    def release(self, acquired: AcquiredAdapters | None) -> None:
        assert acquired is self.acquired
        self.released += 1

    def submit_acquired(
        self, deliver: Callable[[Event], None], request: Request, acquired: AcquiredAdapters | None
    ) -> Handle:
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append(deliver)
        return Handle(lambda: None, deliver)

    def known(self) -> KnownAdapters:
        return KnownAdapters(generation=4)

    def unload(self, name: str) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def adapters() -> Iterator[Adapters]:
    found = Adapters()
    yield found
    found.go_on.set()


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def server(adapters: Adapters, channel: Channel) -> EngineServer:
    engine: Any = None
    return EngineServer(engine, channel, adapters)  # type: ignore[arg-type]


def test_requests_without_adapters_pass_those_that_wait(
    server: EngineServer, adapters: Adapters, channel: Channel
) -> None:
    server.submit(1, REQUEST, CHOSEN)
    server.submit(2, REQUEST, None)
    assert len(adapters.submitted) == 1
    adapters.go_on.set()
    wait_for(lambda: len(adapters.submitted) == 2)
    assert channel.events == [(1, CHOSEN_EVENT)]


def test_a_request_that_is_cancelled_while_it_waits_lets_go(
    server: EngineServer, adapters: Adapters, channel: Channel
) -> None:
    server.submit(1, REQUEST, CHOSEN)
    server.cancel(1)
    adapters.go_on.set()
    wait_for(lambda: bool(channel.events))
    [(number, end)] = channel.events
    assert (number, adapters.released, adapters.submitted) == (1, 1, [])
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
    server.cancel(1)  # the two messages may cross


@pytest.mark.parametrize("error", [RequestError("full", code="adapter_slots_full"), KeyError("a defect")])
def test_an_adapter_that_cannot_be_had_ends_its_request_alone(
    server: EngineServer, adapters: Adapters, channel: Channel, error: Exception
) -> None:
    adapters.error = error
    adapters.go_on.set()
    server.submit(1, REQUEST, CHOSEN)
    wait_for(lambda: bool(channel.events))
    [(_, end)] = channel.events
    assert isinstance(end, Failed)
    assert end.error is error or isinstance(end.error, EngineError)
    server.submit(2, REQUEST, None)
    assert len(adapters.submitted) == 1


def test_a_request_that_the_engine_refuses(server: EngineServer, adapters: Adapters, channel: Channel) -> None:
    adapters.refusal = RequestError("no")
    adapters.go_on.set()
    server.submit(1, REQUEST, CHOSEN)
    wait_for(lambda: len(channel.events) == 2)
    assert channel.events[0] == (1, CHOSEN_EVENT)
    assert isinstance(channel.events[1][1], Failed)


@pytest.mark.parametrize("error", [None, RequestError("there is no adapter"), ValueError("a defect")])
def test_a_change_answers_with_the_adapters_after_it(
    server: EngineServer, adapters: Adapters, channel: Channel, error: Exception | None
) -> None:
    adapters.error = error
    server.change_adapters(7, UnloadAdapter("a"))
    wait_for(lambda: bool(channel.sent))
    [changed] = channel.sent
    assert isinstance(changed, AdaptersChanged)
    assert (changed.number, changed.adapters.generation) == (7, 4)
    assert (changed.error is None) == (error is None)
    assert changed.error is None or isinstance(changed.error, MistralrsError)
