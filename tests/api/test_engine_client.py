"""The engine as a server sees it: in a process of its own it answers as in this one, and what happens to it is told.

Laws: every stream ends; what is refused is refused at once; after the end no process, thread or descriptor is left.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mistralrs.api.engine_client import engine_connection, heartbeat
from mistralrs.api.engine_client import remote as remote_module
from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.engine_client.engine_channel import LogRelay
from mistralrs.api.engine_client.engine_client import EngineClient
from mistralrs.api.engine_client.engine_messages import Cancel, FrameDecoder, Logged, Step, Submit, frame, pack, unpack
from mistralrs.api.engine_client.heartbeat import EngineHeartbeat
from mistralrs.api.engine_client.in_process import InProcessEngine
from mistralrs.api.engine_client.remote import RemoteEngine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import (
    Delta,
    Embedding,
    End,
    Event,
    Failed,
    Finished,
    PromptLogprobs,
    Scalings,
    TokenLogprob,
    Usage,
)
from mistralrs.engine.request_hooks import Hooks
from mistralrs.engine.stats import EngineStats
from mistralrs.errors import (
    ContextLengthError,
    EngineError,
    FormatError,
    LoadError,
    MistralrsError,
    QueueFullError,
    RequestError,
    UsageError,
)
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.progress import Progress
from tests.api import fake_engine_process as fake
from tests.tiny import TinyConfig, write_tiny

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(ignore_eos=True)
PROMPT = tuple(range(20, 40))
USAGE = Usage(3, 0, 2, 0.0, 0.0, 0.0, 0)
OPTIONS = LoadOptions(threads=1, max_seqs=4)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process is waited for longer, because the machine may stand still for seconds."""
    for name in ("GRACE_S", "CANCEL_S", "STATS_S", "CLOSING_S"):
        monkeypatch.setattr(remote_module, name, 60.0)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    path = write_tiny(tmp_path_factory.mktemp("engine") / "tiny.gguf", TinyConfig(context=128)).path
    return ModelSource(None, path, None, None)


@pytest.fixture(scope="module")
def model(source: ModelSource) -> Iterator[LocalModel]:
    with LocalModel.load(source, OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")
async def remote(source: ModelSource, anyio_backend: str) -> AsyncIterator[RemoteEngine]:
    """The tiny model in a process of its own."""
    engine = await RemoteEngine.start(source, OPTIONS)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
async def local(source: ModelSource, anyio_backend: str) -> AsyncIterator[InProcessEngine]:
    with LocalModel.load(source, OPTIONS) as model:
        engine = InProcessEngine(model.engine, model.served)
        yield engine
        await engine.close()


@asynccontextmanager
async def faking(path: str = "any", progress: Progress | None = None) -> AsyncIterator[RemoteEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_connection, "CHILD", fake.__name__)
        engine = await RemoteEngine.start(ModelSource(None, Path(path), None, None), OPTIONS, progress=progress)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
async def fragile(anyio_backend: str) -> AsyncIterator[RemoteEngine]:
    """The fake model in a process of its own, for mishaps that it survives."""
    async with faking() as engine:
        yield engine


async def collect(stream: AsyncStream) -> tuple[list[Delta], Finished | Failed]:
    events = [event async for event in stream]
    *deltas, end = events
    assert isinstance(end, End)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert [event async for event in stream] == []
    return [delta for delta in deltas if isinstance(delta, Delta)], end


async def reason(stream: AsyncStream) -> str:
    _, end = await collect(stream)
    assert isinstance(end, Finished), end
    return end.reason


def resources() -> tuple[int, set[str], int]:
    """Open descriptors, threads but those of the event loop's executor, children."""
    gc.collect()
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), threads, len(children)


def pid_of(engine: RemoteEngine) -> int:
    return engine._link._process.pid


# Messages between the processes


def test_messages_arrive_whole_however_they_are_cut() -> None:
    messages = [Cancel(3), Submit(4, Request(PROMPT, GREEDY)), Step([pack(1, Delta("a", (5,), ()))])]
    data = b"".join(map(frame, messages))
    for size in (1, 7, 100, len(data)):
        unframer = FrameDecoder()
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert [message for piece in pieces for message in unframer.feed(piece)] == messages


def test_every_event_crosses_as_it_is() -> None:
    logprob = TokenLogprob(5, "a", b"a", -0.5, (TokenLogprob(6, "b", b"b", -1.0),))
    events: list[Event] = [
        PromptLogprobs((None, logprob)),
        Embedding((0.6, 0.8)),
        Delta("text", (1, 2), ()),
        Delta("text", (1, 2), (), (3, 1)),
        Delta("", (), ()),
        Delta("a", (5,), (logprob,)),
        Scalings(1, (5,), (1, 2), bytes(8)),
        Finished("stop", USAGE),
    ]
    for event in events:
        assert unpack(pickle.loads(pickle.dumps(pack(7, event)))) == (7, event)


@pytest.mark.parametrize(
    "error",
    [
        LoadError("no such file", hint="look again"),
        FormatError("file", "header", "odd"),
        ContextLengthError(30, 20),
        QueueFullError(5),
        RequestError("bad", code="unknown", param="n"),
        EngineError("dead", code="out_of_memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_crosses_as_it_is(error: MistralrsError) -> None:
    restored = pickle.loads(pickle.dumps(error))
    assert type(restored) is type(error)
    assert (restored.args, vars(restored), str(restored)) == (error.args, vars(error), str(error))


def test_tokenizer_and_template_cross(model: LocalModel) -> None:
    text = "the <|im_start|> and\n ünïcödé 👋"
    tokenizer, template = model.tokenizer, model.template
    assert template is not None
    assert tokenizer.controls  # made on demand, and not sent
    assert tokenizer.control_resource
    tokenizer.prepare()
    restored, rendered = pickle.loads(pickle.dumps((tokenizer, template)))
    for special in (True, False):
        assert restored.encode(text, special=special) == tokenizer.encode(text, special=special)
    assert vars(restored).keys() >= vars(tokenizer).keys() - {"controls", "control_resource"}
    assert "_bound" in vars(restored)
    assert (restored.eos_ids, restored.token_bytes(40)) == (tokenizer.eos_ids, tokenizer.token_bytes(40))
    hello = [{"role": "user", "content": "hello"}]
    assert rendered.render(hello) == template.render(hello)


def test_a_tokenizer_with_more_ends_shares_the_lock_of_its_backend(model: LocalModel) -> None:
    other = model.tokenizer.with_eos([5])
    assert other._backend is model.tokenizer._backend
    assert other._lock is model.tokenizer._lock
    assert copy.copy(other).eos_ids == model.tokenizer.eos_ids | {5}


# Streams


async def test_a_stream_yields_what_was_put_and_ends() -> None:
    stream = AsyncStream(lambda: None)
    events: list[Event] = [Delta("a", (1,), ()), Delta("b", (2, 3), ()), Finished("stop", USAGE)]
    reading = asyncio.create_task(collect(stream))
    for event in events:
        await asyncio.sleep(0)
        stream.put(event)
    deltas, end = await reading
    assert [*deltas, end] == events
    assert stream.num_tokens == 3


async def test_giving_up_the_wait_for_an_event_loses_nothing() -> None:
    stream = AsyncStream(lambda: None)
    for number in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.001)
        waiting = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0)
        stream.put(Delta("", (number,), ()))
        waiting.cancel()  # in the same turn of the loop as the event
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await stream.__anext__() == Delta("", (number,), ())


async def test_cancelling_asks_once_and_not_after_the_end() -> None:
    asked: list[str] = []
    stream, ended = AsyncStream(lambda: asked.append("open")), AsyncStream(lambda: asked.append("ended"))
    ended.put(Finished("stop", USAGE))
    for one in (stream, stream, ended, ended):
        one.cancel()
    assert asked == ["open"]
    assert await reason(ended) == "stop"


async def test_who_does_not_read_keeps_few_events_and_all_of_the_text() -> None:
    stream = AsyncStream(lambda: None)
    logprob = TokenLogprob(5, "a", b"a", -0.5)
    first = PromptLogprobs((None,))
    stream.put(first)
    for number in range(2000):
        stream.put(Delta(f"{number} ", (number,), (logprob,)))
        assert len(stream._unread) <= AsyncStream.BACKLOG
    stream.put(Finished("stop", USAGE))
    events = [event async for event in stream]
    deltas = [event for event in events if isinstance(event, Delta)]
    assert events == [first, *deltas, Finished("stop", USAGE)]
    assert "".join(delta.text for delta in deltas) == "".join(f"{number} " for number in range(2000))
    assert [token for delta in deltas for token in delta.tokens] == list(range(2000))
    assert sum(len(delta.logprobs) for delta in deltas) == stream.num_tokens == 2000


# Both engines


def requests() -> list[Request]:
    sampled = SamplingParams(temperature=1.2, top_k=20, max_tokens=12, logprobs=2)
    base = [replace(sampled, seed=seed, max_tokens=6 + seed) for seed in range(5)] + [GREEDY]
    return [Request(PROMPT[: 20 - 3 * i], sampling) for i, sampling in enumerate(base)]


@pytest.fixture(params=["local", "remote"])
def client(request: pytest.FixtureRequest) -> EngineClient:
    engine: EngineClient = request.getfixturevalue(request.param)
    return engine


async def test_answers_are_those_of_the_model(client: EngineClient, model: LocalModel) -> None:
    streams = [client.submit(request) for request in requests()]
    answers = await asyncio.gather(*map(collect, streams))
    for request, (deltas, end) in zip(requests(), answers, strict=True):
        *expected, expected_end = model.engine.submit(request)
        # how they fall into steps depends on who runs beside them
        assert Delta.joined(deltas) == Delta.joined(expected)  # type: ignore[arg-type]
        assert isinstance(end, Finished)
        assert isinstance(expected_end, Finished)
        assert end.reason == expected_end.reason
        assert end.usage.completion_tokens == expected_end.usage.completion_tokens
        assert end.usage.prompt_s > 0
    stats = await client.stats()
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.num_blocks)
    assert stats.completion_tokens >= sum(stream.num_tokens for stream in streams)
    assert stats.steps > 0


async def test_what_is_asked_of_the_prompt_comes_first(client: EngineClient, model: LocalModel) -> None:
    asked = {
        PromptLogprobs: Request(PROMPT, GREEDY, prompt_logprobs=2, reuse=False),
        Embedding: Request(PROMPT, GREEDY, pooling="mean", reuse=False),
    }
    for kind, request in asked.items():
        first, *news, end = [event async for event in client.submit(request)]
        expected_first, *expected, _ = model.engine.submit(request)
        assert isinstance(first, kind)
        assert first == expected_first
        # how they fall into steps depends on measured times
        assert [Delta.joined(news)] == [Delta.joined(expected)] if expected else news == []  # type: ignore[arg-type]
        assert isinstance(end, Finished)


async def test_what_is_known_of_the_model(client: EngineClient, model: LocalModel) -> None:
    served = client.model
    assert replace(served.info, load_s=0.0) == replace(model.info, load_s=0.0)
    assert (served.max_len, served.vocab_size, served.hidden_size) == (128, model.tokenizer.vocab_size, 64)
    assert served.tokenizer.encode("and the", special=False) == model.tokenizer.encode("and the", special=False)
    assert served.template is not None


async def test_impossible_requests_are_refused_at_once(client: EngineClient) -> None:
    drawn = (await client.stats()).completion_tokens
    with pytest.raises(RequestError, match="temperature"):
        client.submit(Request(PROMPT, replace(GREEDY, temperature=-1.0)))
    with pytest.raises(RequestError, match="vocabulary"):
        client.submit(Request((client.model.vocab_size,), GREEDY))
    with pytest.raises(ContextLengthError, match=r"128 tokens.*129"):
        client.submit(Request((5,) * 129, GREEDY))
    _, end = await collect(client.submit(Request((5,) * 129, GREEDY, truncate=True)))
    assert end.usage.prompt_tokens == 128 - GREEDY.max_tokens  # type: ignore[operator]
    assert (await client.stats()).completion_tokens == drawn + 8


async def test_hooks_stay_in_their_process(client: EngineClient) -> None:
    hooks = Hooks(stopping_rules=(lambda tokens: len(tokens) == len(PROMPT) + 2,))
    request = Request(PROMPT, replace(GREEDY, max_tokens=5), hooks=hooks)
    if isinstance(client, RemoteEngine):
        with pytest.raises(RequestError, match="only with an engine in their own process"):
            client.submit(request)
    else:
        _, end = await collect(client.submit(request))
        assert end.usage.completion_tokens == 2


async def test_a_grammar_crosses_to_the_engine(client: EngineClient) -> None:
    for text, expected in (("(yes|no)", "(yes|no)"), ("(", None)):
        request = Request(PROMPT, replace(GREEDY, max_tokens=9), grammar=GrammarText("regex", text))
        deltas, end = await collect(client.submit(request))
        if expected is None:
            assert isinstance(end, Failed)
            assert isinstance(end.error, RequestError)
        else:
            assert re.fullmatch(expected, Delta.joined(deltas).text)  # type: ignore[arg-type]


async def test_cancelling_frees_the_sequence(client: EngineClient) -> None:
    for _ in range(100):  # on a busy machine an answer may have ended before it is cancelled
        stream = client.submit(Request(PROMPT, LONG))
        assert isinstance(await stream.__anext__(), Delta)
        stream.cancel()
        stream.cancel()
        if (end := await reason(stream)) == "cancelled":
            break
        assert end == "length"
    assert end == "cancelled"
    stream.cancel()
    stats = await client.stats()
    assert (stats.running, stats.free_blocks) == (0, stats.num_blocks)


async def test_one_who_does_not_read_does_not_hold_up_the_others(client: EngineClient) -> None:
    idle = client.submit(Request(PROMPT, replace(LONG, max_tokens=100)))
    deltas, end = await collect(client.submit(requests()[2]))
    assert isinstance(end, Finished)
    assert sum(len(delta.tokens) for delta in deltas) == 8
    deltas, end = await collect(idle)
    assert sum(len(delta.tokens) for delta in deltas) == end.usage.completion_tokens == 100


# Failures over the pipe


async def test_a_failing_pass_ends_its_batch_and_the_engine_goes_on(
    fragile: RemoteEngine, caplog: pytest.LogCaptureFixture
) -> None:
    for token, code, words in ((fake.FAILS, "internal_error", "out of luck"), (fake.LACKS_MEMORY, "out_of_memory", "")):
        _, end = await collect(fragile.submit(Request((token, *PROMPT), GREEDY)))
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineError)
        assert (end.error.code, words in end.error.message) == (code, True)
        assert await reason(fragile.submit(Request(PROMPT, GREEDY))) == "length"
    assert fragile.fault is None
    # Records of the other process are logged here.
    records = [record for record in caplog.records if record.name == "mistralrs.engine.engine_core"]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    assert records[0].getMessage() == "a forward pass failed: ValueError: out of luck"
    assert "Traceback" in (records[0].exc_text or "")


async def test_a_full_queue_is_told_at_once_and_waiting_can_be_cancelled(fragile: RemoteEngine) -> None:
    room = fake.CONFIG.max_seqs + 2
    streams = [fragile.submit(Request(PROMPT, LONG)) for _ in range(room)]
    with pytest.raises(QueueFullError, match="2 requests") as refused:
        fragile.submit(Request(PROMPT, LONG))
    assert refused.value.code == "queue_full"
    await asyncio.gather(*(stream.__anext__() for stream in streams[:-2]))
    stats = await fragile.stats()
    assert (stats.running, stats.waiting) == (room - 2, 2)
    streams[-1].cancel()
    deltas, end = await collect(streams[-1])
    assert (deltas, isinstance(end, Finished)) == ([], True)
    for stream in streams:
        stream.cancel()
    for stream in streams[:-1]:
        assert await reason(stream) == "cancelled"
    stats = await fragile.stats()
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.num_blocks)


async def test_cancelling_in_the_middle_of_a_prefill_stops_the_step(fragile: RemoteEngine) -> None:
    stream = fragile.submit(Request((fake.HANGS, *PROMPT), GREEDY))
    while (await fragile.stats()).running == 0:
        await asyncio.sleep(0.01)
    stream.cancel()
    deltas, end = await collect(stream)
    assert deltas == []
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"


async def test_a_deadline_ends_a_request_after_what_it_has_so_far(fragile: RemoteEngine) -> None:
    other = fragile.submit(Request(PROMPT, replace(GREEDY, max_tokens=60)))
    for deadline_s in (0.2, 0.2, 0.2, 0.2, 0.2):  # nothing comes of one while the machine stands still
        deltas, end = await collect(fragile.submit(Request(PROMPT, LONG, deadline_s=deadline_s)))
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineError)
        assert end.error.code == "deadline_exceeded"
        assert sum(len(delta.tokens) for delta in deltas) == end.usage.completion_tokens
        if deltas:
            break
    assert deltas
    assert await reason(other) == "length"


async def test_the_end_of_the_engines_thread_is_told_and_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    async with faking() as engine:
        bystander = engine.submit(Request(PROMPT, LONG))
        await bystander.__anext__()
        streams = [bystander, engine.submit(Request((fake.KILLS_THE_THREAD, *PROMPT), GREEDY))]
        for stream in streams:
            _, end = await collect(stream)
            assert isinstance(end, Failed)
            assert "the engine died: TypeError" in end.error.message
        await engine._ended
        assert engine._link._process.returncode == 1
        assert engine.fault is not None
        assert "the engine died: TypeError" in engine.fault.message
        with pytest.raises(EngineError, match="TypeError"):
            engine.submit(Request(PROMPT, GREEDY))
        with pytest.raises(EngineError, match="TypeError"):
            await engine.stats()
    assert "the engine died" in caplog.text


async def test_a_panic_of_the_engines_thread_is_told_and_ends_the_process(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with faking() as engine:
        _, end = await collect(engine.submit(Request((fake.PANICS, *PROMPT), GREEDY)))
        assert isinstance(end, Failed)
        assert end.error.message == "the engine died: Panic: unwrap on None"
        await engine._ended
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert capfd.readouterr() == ("", "")


def test_a_record_of_the_log_crosses_whatever_it_holds() -> None:
    received: list[object] = []

    class Wire:
        def send(self, message: object) -> None:
            received.extend(FrameDecoder().feed(frame(message)))

    source = logging.Logger("far.away")
    source.addHandler(LogRelay(Wire()))  # type: ignore[arg-type]
    try:
        raise KeyError("lost")
    except KeyError:
        source.warning("%d%% of %s", 5, object(), exc_info=True, extra={"lock": threading.Lock()})
    [message] = received
    assert isinstance(message, Logged)
    record = message.record
    assert (record.name, record.levelname, record.lineno > 0) == ("far.away", "WARNING", True)
    assert re.fullmatch(r"5% of <object .*>: KeyError: 'lost'", record.getMessage())
    shown = logging.Formatter("%(levelname)s %(name)s: %(message)s").format(record)
    assert shown.startswith("WARNING far.away: 5% of")
    assert shown.count("Traceback") == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV], ids=lambda how: how.name)
async def test_the_death_of_the_process_is_survived(how: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = resources()
    async with faking() as engine:
        streams = [engine.submit(Request(PROMPT, LONG)) for _ in range(2)]
        await streams[0].__anext__()
        asking = None
        if how == signal.SIGKILL:
            os.kill(pid_of(engine), signal.SIGSTOP)  # so that the question is not answered
            asking = asyncio.create_task(engine.stats())
            await asyncio.sleep(0)
            os.kill(pid_of(engine), how)
        else:
            streams.append(engine.submit(Request((fake.CRASHES, *PROMPT), GREEDY)))
        for stream in streams:
            _, end = await collect(stream)
            assert isinstance(end, Failed)
            assert f"signal {how.value} " in end.error.message
            assert end.usage.completion_tokens == stream.num_tokens
            stream.cancel()
        if asking is not None:
            with pytest.raises(EngineError, match=f"signal {how.value} "):
                await asking
        assert engine.fault is not None
        assert f"signal {how.value} " in engine.fault.message
        with pytest.raises(EngineError, match=f"signal {how.value} "):
            engine.submit(Request(PROMPT, GREEDY))
    assert f"was killed by signal {how.value} " in caplog.text
    assert resources() == before


def busy(steps: int, running: int = 1) -> EngineStats:
    return EngineStats(running, 0, 8, 8, 0, 0, 0, 0, 0, 0, steps, 0)


def test_an_engine_stands_still_that_neither_answers_nor_steps() -> None:
    silent, working, idle = EngineHeartbeat(), EngineHeartbeat(), EngineHeartbeat()
    for number in range(heartbeat.WITHOUT_STEP + 1):
        assert (silent.stall is None) == (number <= heartbeat.UNANSWERED)
        assert working.stall is None
        silent.on_ping()
        for pulse, stats in ((working, busy(3)), (idle, busy(3, 0))):
            pulse.on_ping()
            pulse.on_message()
            pulse.on_stats(stats)
    assert idle.stall is None
    assert working.stall is not None
    assert (working.stall.code, "in one step" in working.stall.message) == ("engine_stalled", True)
    working.on_stats(busy(4))
    silent.on_message()
    assert (working.stall, silent.stall) == (None, None)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_process_that_stands_still_is_told_and_may_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.05)
    before = resources()
    async with faking() as engine:
        monkeypatch.setattr(remote_module, "GRACE_S", 0.05)
        late = engine.submit(Request(PROMPT, LONG, deadline_s=1.0))
        unwanted, patient = (engine.submit(Request(PROMPT, LONG)) for _ in range(2))
        for stream in (late, unwanted, patient):
            await stream.__anext__()
        os.kill(pid_of(engine), signal.SIGSTOP)
        for name in ("CANCEL_S", "STATS_S"):
            monkeypatch.setattr(remote_module, name, 0.05)
        await until(lambda: engine.stalled is not None)
        with pytest.raises(EngineError) as unanswered:
            await engine.stats()
        assert unanswered.value.code == "engine_stalled"
        unwanted.cancel()
        assert await reason(unwanted) == "cancelled"
        deltas, end = await collect(late)
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineError)
        assert end.error.code == "deadline_exceeded"
        assert end.usage.completion_tokens == late.num_tokens > sum(len(delta.tokens) for delta in deltas)
        assert engine.fault is None
        await until(lambda: "has not answered" in caplog.text)
        for module, name in ((heartbeat, "HEARTBEAT_S"), (remote_module, "STATS_S"), (remote_module, "CANCEL_S")):
            monkeypatch.setattr(module, name, 60.0 if module is remote_module else 0.5)
        os.kill(pid_of(engine), signal.SIGCONT)
        assert await reason(patient) == "length"
        await until(lambda: engine.stalled is None)
        assert await reason(engine.submit(Request(PROMPT, GREEDY))) == "length"
        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.num_blocks)
        await until(lambda: "the engine goes on" in caplog.text)
    assert [record.levelname for record in caplog.records if "engine" in record.message] == ["ERROR", "WARNING"]
    assert resources() == before


async def test_a_step_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(remote_module, "CLOSING_S", 0.2)
    monkeypatch.setattr(heartbeat, "WITHOUT_STEP", 5)
    async with faking() as engine:
        assert await reason(engine.submit(Request(PROMPT, GREEDY))) == "length"
        engine.submit(Request((fake.IGNORES_ABORT, *PROMPT), GREEDY))
        await until(lambda: engine.stalled is not None)
        assert engine.stalled is not None
        assert "in one step" in engine.stalled.message


async def test_a_server_that_stands_still_misses_nothing(fragile: RemoteEngine) -> None:
    much = SamplingParams(ignore_eos=True, logprobs=20)
    streams = [fragile.submit(Request(PROMPT, much)) for _ in range(3)]
    await streams[0].__anext__()
    time.sleep(1.5)  # the socket fills up, and the engine waits
    assert fragile.stalled is None
    for stream in streams:
        assert await reason(stream) == "length"
        assert stream.num_tokens == fake.CONFIG.max_model_len - len(PROMPT)
    assert fragile.stalled is None


async def test_closing_ends_open_streams_and_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before = resources()
    told: list[str] = []
    async with faking(progress=lambda what, done, total: told.append(f"{what} {done}/{total}")) as engine:
        streams = [engine.submit(Request(PROMPT, LONG)) for _ in range(5)]
        await streams[0].__anext__()
        await asyncio.gather(engine.close(), engine.close())
        assert [await reason(stream) for stream in streams] == ["cancelled"] * 5
        assert engine._link._process.returncode == 0
        with pytest.raises(EngineError, match="closed"):
            engine.submit(Request(PROMPT, GREEDY))
        with pytest.raises(EngineError, match="closed"):
            await engine.stats()
    assert told == ["weights 1/2"]
    assert resources() == before
    assert caplog.records == []


async def test_a_process_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_module, "CLOSING_S", 0.2)
    async with faking() as engine:
        stream = engine.submit(Request((fake.IGNORES_ABORT, *PROMPT), GREEDY))
        while (await engine.stats()).running == 0:
            await asyncio.sleep(0.01)
        await engine.close()
        assert await reason(stream) == "cancelled"
        assert engine._link._process.returncode == -signal.SIGKILL
    assert "is killed" in caplog.text


async def test_signals_of_the_terminal_are_left_to_the_parent(fragile: RemoteEngine) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(fragile), number)
    assert await reason(fragile.submit(Request(PROMPT, GREEDY))) == "length"


# Loading


async def test_what_cannot_be_loaded_is_told_as_in_this_process(source: ModelSource, tmp_path: Path) -> None:
    assert source.path is not None
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(source.path.read_bytes()[:2000])
    cases = [
        (replace(source, path=Path("absent.gguf")), OPTIONS),
        (replace(source, path=damaged), OPTIONS),
        (source, replace(OPTIONS, isa="sse9")),
    ]
    kinds = set()
    before = resources()
    for which, options in cases:
        with pytest.raises(MistralrsError) as expected:
            LocalModel.load(which, options)
        with pytest.raises(MistralrsError) as caught:
            await RemoteEngine.start(which, options)
        assert type(caught.value) is type(expected.value)
        assert (caught.value.message, caught.value.hint) == (expected.value.message, expected.value.hint)
        kinds.add(type(caught.value))
    assert {FormatError, UsageError} <= kinds
    assert resources() == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("takes too much memory", "killed by signal 9 .* while it loaded"),
        ("has a bug", "ZeroDivisionError: by zero"),
        ("panics", "Panic: unwrap on None"),
    ],
)
async def test_a_process_that_dies_of_loading(
    path: str, words: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LoadError, match=words) as failed:
        async with faking(path):
            pass
    # Where it happened is told with the error and nowhere else.
    traces = "".join(getattr(failed.value, "__notes__", ()))
    assert traces.count("in load") == (path != "takes too much memory")
    assert (caplog.records, capfd.readouterr()) == ([], ("", ""))


async def test_giving_up_while_it_loads_leaves_nothing() -> None:
    before = resources()
    loading = asyncio.Event()
    starting = asyncio.create_task(faking("takes long", lambda *_: loading.set()).__aenter__())
    await loading.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert resources() == before


# Processes


ALONE = """
import asyncio, sys, time
from pathlib import Path
from mistralrs.api.engine_client.remote import RemoteEngine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.engine.config import Request, SamplingParams

async def main():
    source = ModelSource(None, Path(sys.argv[1]), None, None)
    engine = await RemoteEngine.start(source, LoadOptions(threads=1))
    events = [event async for event in engine.submit(Request((5, 6), SamplingParams(max_tokens=3, ignore_eos=True)))]
    heavy = [name for name in ("torch", "numpy") if name in sys.modules]
    print(len(events), heavy, engine._link._process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_parent_needs_no_torch_and_the_child_does_not_outlive_it(source: ModelSource) -> None:
    with subprocess.Popen([sys.executable, "-c", ALONE, str(source.path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            events, heavy, child = parent.stdout.readline().split(maxsplit=2)
            assert (events, heavy) == ("4", "[]")
            assert is_running(int(child))
        finally:
            parent.kill()
    deadline = time.monotonic() + 60
    while is_running(int(child)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(int(child))


def is_running(pid: int) -> bool:
    """A zombie, whose parent may be slow to notice, is not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"
