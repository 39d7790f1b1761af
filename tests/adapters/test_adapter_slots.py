"""Adapters in slots: none is written while a request uses it, and the one that was used the longest time ago leaves."""

from __future__ import annotations

import itertools
import threading
from array import array
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from queue import SimpleQueue
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mistralrs.adapters.adapter_slots import AcquiredAdapters, AdapterLimits, AdapterSlots
from mistralrs.adapters.lora.lora import LoraAdapter, LoraDelta
from mistralrs.engine.config import EngineConfig, Request, RequestAdapter, SamplingParams
from mistralrs.engine.engine import Engine
from mistralrs.engine.events import Event, Failed, Finished
from mistralrs.errors import EngineError, LoadError, MistralrsError, RequestError
from mistralrs.models.parts import WeightKey
from mistralrs.ops.kv_groups import KvGroup
from mistralrs.ops.weight import Matrix
from mistralrs.quant.types import TYPES
from tests.engine.fakes import FakeRunner, FakeTokenizer

NAMES = ("red", "green", "blue", "white")
NUM_SLOTS = 2


def digest_of(version: int) -> bytes:
    return version.to_bytes(16, "little")


def adapter(name: str, version: int = 0, **changes: Any) -> LoraAdapter:
    """One with the file ``name.safetensors``, whose content the version decides."""
    a = Matrix("a", TYPES["F32"], 2, 4, memoryview(bytes(32)))
    b = Matrix("b", TYPES["F32"], 8, 2, memoryview(bytes(64)))
    values = {
        "name": name,
        "source": f"{name}.safetensors",
        "digest": digest_of(version),
        "rank": 2,
        "deltas": {WeightKey("q_proj", 0): LoraDelta(a=a, b=b, scale=1.0, bias=array("f", [0] * 8))},
    }
    return LoraAdapter(**{**values, **changes})


def done(error: Exception | None = None) -> Future[None]:
    future: Future[None] = Future()
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
    return future


class FakeModel:
    """Slots that are written at once, and files. A slot must be empty when an adapter is placed."""

    def __init__(self, num_slots: int = NUM_SLOTS, **limits: int) -> None:
        self.contents: list[bytes | None] = [None] * num_slots
        self.files: dict[str, LoraAdapter] = {}
        self.in_use: set[int] = set()
        self.errors: list[Exception] = []
        """Of the next calls, instead of their effect."""
        self.writes: list[tuple[int, bytes | None]] = []
        self.slots = AdapterSlots(
            AdapterLimits(max_adapters=num_slots, **limits), place=self.place, clear=self.clear, read=self.read
        )

    def load(self, name: str, version: int = 0, **changes: Any) -> None:
        self.files[f"{name}.safetensors"] = adapter(name, version, **changes)
        self.slots.load(self.files[f"{name}.safetensors"])

    def place(self, slot: int, placed: LoraAdapter) -> Future[None]:
        assert self.contents[slot] is None, "two adapters in a slot"
        return self._write(slot, placed.digest)

    def clear(self, slot: int) -> Future[None]:
        return self._write(slot, None)

    def read(self, name: str, source: str) -> LoraAdapter:
        if source not in self.files:
            raise LoadError(f"{source} is gone")
        assert self.files[source].name == name
        return self.files[source]

    def _write(self, slot: int, digest: bytes | None) -> Future[None]:
        assert slot not in self.in_use, "a slot is written while a request uses it"
        if self.errors:
            return done(self.errors.pop(0))
        self.contents[slot] = digest
        self.writes.append((slot, digest))
        return done()


def names_in_slots(slots: AdapterSlots) -> set[str]:
    return {status.name for status in slots.adapters() if status.slot is not None}


class Schedules(RuleBasedStateMachine):
    """Random calls beside a model of them: a list of (name, version), the least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.model = FakeModel()
        self.slots = self.model.slots
        self.named: dict[str, int] = {}  # to its version
        self.resident: list[tuple[str, int]] = []
        self.open: list[tuple[AcquiredAdapters, list[tuple[str, int]]]] = []
        self.versions = itertools.count()
        self.generation = 0

    def is_open(self, key: tuple[str, int]) -> bool:
        return any(key in keys for _, keys in self.open)

    def touch(self, keys: list[tuple[str, int]]) -> None:
        for key in keys:
            self.resident = [other for other in self.resident if other != key] + [key]

    def evict_for(self, keys: list[tuple[str, int]]) -> bool:
        """Whether all of them can have a slot; the least recently used ones that are idle then have left theirs."""
        missing = sum(key not in self.resident for key in keys)
        idle = [key for key in self.resident if not self.is_open(key) and key not in keys]
        over = len(self.resident) + missing - NUM_SLOTS
        if over > len(idle):
            return False
        self.resident = [key for key in self.resident if key not in idle[: max(over, 0)]]
        return True

    def drop_unnamed(self) -> None:
        self.resident = [key for key in self.resident if self.is_open(key) or self.named.get(key[0]) == key[1]]

    @rule(name=st.sampled_from(NAMES))
    def load(self, name: str) -> None:
        key = (name, next(self.versions))
        self.model.load(*key)
        if self.evict_for([key]):
            self.touch([key])
        self.named[name] = key[1]
        self.drop_unnamed()
        self.generation += 1

    @rule(name=st.sampled_from(NAMES))
    def load_the_same(self, name: str) -> None:
        if name in self.named:
            self.model.load(name, self.named[name])

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name: str) -> None:
        if name not in self.named:
            with pytest.raises(RequestError, match=f"no adapter '{name}'"):
                self.slots.unload(name)
            return
        self.slots.unload(name)
        del self.named[name]
        self.drop_unnamed()
        self.generation += 1

    @rule(weights=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.0, 0.5, 1.0]), max_size=3))
    def acquire(self, weights: dict[str, float]) -> None:
        before = self.slots.adapters()
        keys = [(name, self.named.get(name, -1)) for name, weight in weights.items() if weight]
        if not set(weights) <= set(self.named):
            expected = "there is no adapter"
        elif len(keys) > NUM_SLOTS:
            expected = "at most 2 can act at once"
        elif not self.evict_for(keys):
            expected = "open requests use all 2 adapter slots"
        else:
            acquired = self.slots.acquire(weights)
            assert [use.digest for use in acquired.adapters] == [digest_of(version) for _, version in keys]
            assert [use.weight for use in acquired.adapters] == [weights[name] for name, _ in keys]
            assert acquired.generation == self.generation
            self.touch(keys)
            self.open.append((acquired, keys))
            self.note_use()
            return
        with pytest.raises(RequestError, match=expected):
            self.slots.acquire(weights)
        assert self.slots.adapters() == before

    @precondition(lambda self: self.open)
    @rule(data=st.data(), again=st.booleans())
    def release(self, data: st.DataObject, again: bool) -> None:
        acquired, keys = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.note_use()
        self.slots.release(acquired)
        if again:
            self.slots.release(acquired)
        self.touch(keys)
        self.drop_unnamed()

    def note_use(self) -> None:
        self.model.in_use = {use.slot for acquired, _ in self.open for use in acquired.adapters}

    @invariant()
    def every_request_has_its_adapters(self) -> None:
        for acquired, _ in self.open:
            for use in acquired.adapters:
                assert self.model.contents[use.slot] == use.digest

    @invariant()
    def slots_hold_what_was_used_last(self) -> None:
        contents = [digest for digest in self.model.contents if digest is not None]
        assert sorted(contents) == sorted(digest_of(version) for _, version in self.resident)
        for status in self.slots.adapters():
            key = (status.name, self.named[status.name])
            assert status.digest == digest_of(key[1])
            assert (status.slot is not None) == (key in self.resident)
            assert status.num_open == sum(key in keys for _, keys in self.open)
            if status.slot is not None:
                assert self.model.contents[status.slot] == status.digest
        assert {status.name for status in self.slots.adapters()} == set(self.named)
        assert self.slots.generation == self.generation


Schedules.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSchedules = Schedules.TestCase


def test_the_least_recently_used_adapter_leaves_and_is_read_again() -> None:
    model = FakeModel()
    model.load("red")
    model.load("green", 1)
    model.slots.release(model.slots.acquire({"red": 1.0}))
    model.load("blue", 2)
    assert names_in_slots(model.slots) == {"red", "blue"}
    held = model.slots.acquire({"red": 0.5})
    model.slots.release(model.slots.acquire({"green": 1.0}))
    assert names_in_slots(model.slots) == {"red", "green"}
    slot = held.adapters[0].slot
    assert held.adapters == (RequestAdapter(slot, digest_of(0), 0.5),)
    assert (model.writes[0], model.writes[-2:]) == ((0, digest_of(0)), [(1 - slot, None), (1 - slot, digest_of(1))])


def test_unloading_waits_for_requests_that_use_the_adapter() -> None:
    model = FakeModel()
    model.load("red", 1)
    held = [model.slots.acquire({"red": 1.0}) for _ in range(2)]
    model.slots.unload("red")
    with pytest.raises(RequestError, match="no adapter 'red'") as refused:
        model.slots.acquire({"red": 1.0})
    assert (refused.value.code, refused.value.param) == ("adapter_not_found", "adapters")
    model.slots.release(held[0])
    assert model.contents == [digest_of(1), None]
    model.slots.release(held[1])
    assert model.contents == [None, None]


def test_a_reload_under_the_same_name_leaves_running_requests_theirs() -> None:
    model = FakeModel()
    model.load("red", 1)
    old = model.slots.acquire({"red": 1.0})
    model.load("red", 2)
    new = model.slots.acquire({"red": 1.0})
    assert [model.contents[use.slot] for held in (old, new) for use in held.adapters] == [digest_of(1), digest_of(2)]
    assert (old.generation, new.generation) == (1, 2)
    model.slots.release(old)
    assert sorted(filter(None, model.contents)) == [digest_of(2)]


def test_invocation_tokens_reach_the_request() -> None:
    model = FakeModel()
    model.load("red", invocation_tokens=(5, 6))
    assert model.slots.acquire({"red": 1.0}).adapters == (RequestAdapter(0, digest_of(0), 1.0, (5, 6)),)


# Refusing


@pytest.mark.parametrize(
    ("limits", "changes", "message"),
    [
        ({"num_slots": 0}, {}, "no adapter slots"),
        ({"max_rank": 8}, {"rank": 9}, "rank 9; at most 8"),
        ({"max_bytes": 127}, {}, "128 bytes; at most 127"),
    ],
)
def test_adapters_beyond_the_limits_are_refused(limits: Any, changes: Any, message: str) -> None:
    model = FakeModel(**limits)
    with pytest.raises(LoadError, match=f"red.*{message}") as refused:
        model.load("red", **changes)
    assert refused.value.hint
    assert (model.slots.adapters(), model.slots.generation, model.writes) == ([], 0, [])


def test_adapters_at_the_limits_are_placed() -> None:
    model = FakeModel(max_rank=2, max_bytes=128)
    model.load("red")
    assert names_in_slots(model.slots) == {"red"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"red": float("nan")}, "red has weight nan"),
        ({"red": float("inf")}, "red has weight inf"),
        ({"alone": 0.5}, "alone has use_dora"),
        ({"alone": 1.0, "red": 1.0}, "alone has use_dora"),
        ({"red": 1.0, "pink": 0.0}, "no adapter 'pink'"),
    ],
)
def test_impossible_weights_are_refused(weights: dict[str, float], message: str) -> None:
    model = FakeModel()
    model.load("red")
    model.load("alone", acts_alone="use_dora")
    with pytest.raises(RequestError, match=message) as refused:
        model.slots.acquire(weights)
    assert refused.value.param == "adapters"
    assert [status.num_open for status in model.slots.adapters()] == [0, 0]
    assert len(model.slots.acquire({"alone": 1.0, "red": 0.0}).adapters) == 1


def test_a_file_that_has_changed_is_not_served_under_the_old_name() -> None:
    model = FakeModel(num_slots=1)
    model.load("red", 1)
    model.load("green", 2)
    model.files["red.safetensors"] = adapter("red", 3)
    with pytest.raises(LoadError, match=r"red.safetensors has changed"):
        model.slots.acquire({"red": 1.0})
    del model.files["red.safetensors"]
    with pytest.raises(LoadError, match="is gone"):
        model.slots.acquire({"red": 1.0})
    assert model.contents == [None]
    model.load("red", 3)
    assert model.contents == [digest_of(3)]
    assert len(model.slots.acquire({"green": 1.0}).adapters) == 1


def test_a_failed_placing_leaves_names_as_they_were_and_the_slot_empty() -> None:
    model = FakeModel()
    model.load("red", 1)
    model.errors = [EngineError("out of memory")]
    with pytest.raises(EngineError, match="out of memory"):
        model.load("red", 2)
    [status] = model.slots.adapters()
    assert (status.digest, model.slots.generation) == (digest_of(1), 1)
    assert sorted(model.contents, key=bool) == [None, digest_of(1)]
    model.load("green", 3)
    model.load("blue", 4)  # red's slot
    model.errors = [EngineError("cannot clear")] * 3  # as another leaves, again for red, and after that has failed
    with pytest.raises(EngineError, match="cannot clear"):
        model.slots.acquire({"red": 1.0})
    model.errors = []
    for names in (("red", "blue"), ("green", "blue"), ("red", "green")):  # no slot is lost, none has two adapters
        model.files["red.safetensors"] = adapter("red", 1)
        held = model.slots.acquire(dict.fromkeys(names, 1.0))
        assert [model.contents[use.slot] for use in held.adapters] == [use.digest for use in held.adapters]
        model.slots.release(held)


# Threads


class Writer:
    """Makes calls one after another in a thread of its own, as an engine does between two steps."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def call(self, call: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()
        self._calls.put((call, future))
        return future

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            try:
                call()
            except AssertionError as error:
                future.set_exception(error)
            else:
                future.set_result(None)


def test_many_threads_load_and_use_adapters_at_once() -> None:
    contents: list[bytes | None] = [None] * 3
    in_use: list[tuple[int, bytes]] = []
    files: dict[str, LoraAdapter] = {}
    faults: list[str] = []

    def write(slot: int, digest: bytes | None) -> None:
        if any(slot == used for used, _ in list(in_use)) or (digest is not None and contents[slot] is not None):
            faults.append(f"slot {slot} was written in use, or twice")
        contents[slot] = digest

    num_acquired: list[int] = []

    def load(name: str, version: int) -> None:
        files[f"{name}.safetensors"] = adapter(name, version)
        slots.load(files[f"{name}.safetensors"])

    def use(seed: int) -> None:
        random = Random(seed)
        for _ in range(300):
            names = random.sample(NAMES, random.randint(1, 2))
            try:
                if seed == 0:
                    load(names[0], random.randrange(1000))
                    continue
                acquired = slots.acquire(dict.fromkeys(names, 1.0))
            except MistralrsError as error:
                # Another file may be there already whose adapter is not loaded yet.
                if not any(text in error.message for text in ("open requests use all", "has changed")):
                    faults.append(error.message)
                continue
            num_acquired.append(len(names))
            used = [(use.slot, use.digest) for use in acquired.adapters]
            in_use.extend(used)
            if any(contents[slot] != digest for slot, digest in used):
                faults.append("a slot holds another adapter")
            for entry in used:
                in_use.remove(entry)
            slots.release(acquired)

    with closing(Writer()) as writer:
        slots = AdapterSlots(
            AdapterLimits(max_adapters=3),
            place=lambda slot, placed: writer.call(partial(write, slot, placed.digest)),
            clear=lambda slot: writer.call(partial(write, slot, None)),
            read=lambda name, source: files[source],
        )
        for version, name in enumerate(NAMES):
            load(name, version)
        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a call waits for ever"
    assert faults == []
    assert len(num_acquired) > 100
    assert [status.num_open for status in slots.adapters()] == [0] * len(NAMES)


def test_answers_are_those_of_the_adapters_that_the_names_meant() -> None:
    """An engine whose adapters are replaced and leave their slots while they answer."""
    config = EngineConfig(
        kv_groups=(KvGroup(60),), max_model_len=100, max_seqs=4, max_batch_tokens=16, block_size=4, max_adapters=2
    )
    random, names = Random(5), NAMES[:3]
    answers: dict[tuple[Any, ...], set[tuple[int, ...]]] = {}
    runner = FakeRunner(block_size=4)
    model = FakeModel()
    with closing(Engine(runner, FakeTokenizer(), config)) as engine:  # type: ignore[arg-type]
        model.slots = slots = AdapterSlots(
            AdapterLimits(max_adapters=2),
            place=lambda slot, placed: engine.between_steps(lambda: runner.slots.update({slot: placed.digest})),
            clear=lambda slot: engine.between_steps(lambda: runner.slots.update({slot: b"empty"})),
            read=model.read,
        )
        ended: list[threading.Event] = []
        full: list[str] = []

        def ask(weights: dict[str, float], prompt: tuple[int, ...]) -> None:
            if len(ended) > 3:
                assert ended[-3].wait(60)
            try:
                acquired = slots.acquire(weights)
            except RequestError as error:
                full.append(error.code)
                assert all(end.wait(60) for end in ended)
                acquired = slots.acquire(weights)
            end, tokens = threading.Event(), []

            def deliver(event: Event) -> None:
                tokens.extend(getattr(event, "tokens", ()))
                if isinstance(event, Finished | Failed):
                    acting = sorted((use.digest, use.weight) for use in acquired.adapters)
                    answers.setdefault((*acting, prompt), set()).add(tuple(tokens))
                    slots.release(acquired)  # by the engine's thread, which waits for nothing
                    end.set()

            ended.append(end)
            engine.submit_to(deliver, Request(prompt, SamplingParams(0.0, max_tokens=6), adapters=acquired.adapters))

        for version, name in enumerate(names):
            model.load(name, version)
        for _ in range(120):
            if random.random() < 0.2:
                model.load(random.choice(names), random.randrange(4))
            weights = {name: random.choice([0.0, 1.0, 2.0]) for name in random.sample(names, random.randint(0, 2))}
            ask(weights, tuple(range(20, 20 + random.choice([9, 13]))))
        assert all(end.wait(60) for end in ended)
        assert engine.stats().cached_tokens > 0
    assert full == ["adapter_slots_full"] * len(full) != []
    assert all(len(found) == 1 for found in answers.values()), "one question had two answers"
    assert len(set.union(*answers.values())) == len(answers) > 20
