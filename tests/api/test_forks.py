"""Forks and pickles: who uses a model in another process than its own is told so at once, and harms nobody.

Nothing here waits for what a fork does not have. A fork that hangs is killed after a minute and fails its test.
"""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mistralrs import ChatCompletionRequest, CompletionRequest, EngineError, Runner, Which
from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.engine_client.in_process import InProcessEngine
from mistralrs.api.engine_client.remote import RemoteEngine
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.python_api.answer_stream import AnswerStream
from mistralrs.engine.config import Request, SamplingParams
from mistralrs.engine.events import Finished
from tests.tiny import TinyConfig, write_tiny

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks"),
]

ASKED: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
LONG = ASKED | {"max_tokens": 1500, "stream": True}
HANG_S = 60.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("forks") / "tiny.gguf", TinyConfig(context=2048)).path


@pytest.fixture(scope="module")
def runner(file: Path) -> Iterator[Runner]:
    """With threads of the kernels too."""
    with Runner(Which.GGUF(quantized_filename=str(file)), threads=2) as runner:
        yield runner


def forked(work: Callable[[], None]) -> None:
    """Does ``work`` in a fork of this process; fails with its traceback, or if it hangs."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks where there are threads
        child = os.fork()
    if child == 0:
        said = b"ok"
        try:
            work()
        except BaseException:
            said = traceback.format_exc().encode()
        os.write(writing, said[-4000:])
        os._exit(0)
    os.close(writing)
    end = time.monotonic() + HANG_S
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the fork hangs")
        time.sleep(0.01)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    assert said == b"ok", said.decode()


def refused(work: Callable[[], object]) -> None:
    with pytest.raises(EngineError, match=f"belongs to process {os.getppid()}; this is process {os.getpid()}") as error:
        work()
    assert error.value.hint is not None
    assert "after the fork" in error.value.hint


def text(runner: Runner) -> str:
    answer = runner.send_completion_request(CompletionRequest("the cat", **ASKED))
    assert not isinstance(answer, AnswerStream)
    return answer.choices[0].text


def test_a_fork_is_told_at_once_and_its_parent_goes_on(runner: Runner) -> None:
    stream = runner.send_completion_request(CompletionRequest("the cat", **LONG))
    assert isinstance(stream, AnswerStream)
    first = next(stream)
    model = runner._model
    local = model.complete((70, 71), SamplingParams(max_tokens=3))

    def work() -> None:
        refused(lambda: text(runner))
        refused(lambda: runner.send_chat_completion_request(ChatCompletionRequest("hi")))
        refused(lambda: runner.send_chat_completion_request(ChatCompletionRequest("hi", stream=True)))
        refused(runner.stats)
        refused(lambda: next(stream))
        refused(lambda: list(local))
        refused(lambda: model.complete((70, 71), SamplingParams()))
        refused(lambda: model.chat([{"role": "user", "content": "hi"}], SamplingParams()))
        refused(lambda: model.count([{"role": "user", "content": "hi"}]))
        refused(model.stats)
        assert isinstance(model.engine.fault, EngineError)
        assert runner.info.architecture == "llama"
        local.cancel()
        stream.close()
        assert list(stream) == []
        with runner:
            pass
        runner.close()
        model.close()

    expected = text(runner)
    forked(work)
    rest = "".join(chunk.choices[0].text for chunk in stream)
    whole = runner.send_completion_request(CompletionRequest("the cat", **(LONG | {"stream": False})))
    assert not isinstance(whole, AnswerStream)
    assert first.choices[0].text + rest == whole.choices[0].text
    assert isinstance(list(local)[-1], Finished)
    assert text(runner) == expected


def test_a_fork_may_make_a_runner_of_its_own(runner: Runner, file: Path) -> None:
    expected = text(runner)

    def work() -> None:
        with Runner(Which.GGUF(quantized_filename=str(file)), threads=2) as own:
            assert text(own) == expected

    forked(work)


def test_a_fork_lets_go_of_what_its_parent_has_closed(file: Path) -> None:
    """The kernels' threads too, whose end it must not wait for."""
    runner = Runner(Which.GGUF(quantized_filename=str(file)), threads=2)
    text(runner)
    runner.close()
    held = [runner]
    del runner

    def work() -> None:
        held.clear()
        gc.collect()

    forked(work)


def test_a_fork_that_exits_runs_its_last_calls(file: Path) -> None:
    """Those that close models among them."""
    program = f"""
import os, sys, warnings
from mistralrs import CompletionRequest, Runner, Which
warnings.simplefilter("ignore")
runner = Runner(Which.GGUF(quantized_filename={str(file)!r}), threads=2)
stream = runner.send_completion_request(CompletionRequest("a", max_tokens=1500, ignore_eos=True, stream=True))
next(stream)
child = os.fork()
if child == 0:
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert list(stream)[-1].choices[0].finish_reason == "length"
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * HANG_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def nothing(*arguments: object) -> None:
    pass


async def test_nothing_with_threads_is_copied_or_pickled(runner: Runner) -> None:
    stream = runner.send_completion_request(CompletionRequest("a", **(ASKED | {"stream": True})))
    local = runner._model.complete((70,), SamplingParams(max_tokens=1))
    for thing in (runner, stream, runner._model, runner._model.engine, local, AsyncStream(nothing), RemoteEngine(None)):
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps, lambda thing: pickle.dumps({"deep": [thing]}, 2)):
            with pytest.raises(TypeError, match=f"a {type(thing).__name__} cannot be copied, pickled or sent .*Runner"):
                duplicate(thing)
    process = multiprocessing.get_context("spawn").Process(target=nothing, args=(runner,))
    with pytest.raises(TypeError, match="a Runner cannot be copied, pickled or sent to another process"):
        process.start()


# The engine of a server


@pytest.fixture(scope="module")
async def remote(file: Path, anyio_backend: str) -> AsyncIterator[RemoteEngine]:
    engine = await RemoteEngine.start(ModelSource(None, file, None, None), LoadOptions(threads=1))
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
async def inside(file: Path, anyio_backend: str) -> AsyncIterator[InProcessEngine]:
    with LocalModel.load(ModelSource(None, file, None, None), LoadOptions(threads=1)) as model:
        engine = InProcessEngine(model.engine, model.served)
        yield engine
        await engine.close()


@pytest.mark.parametrize("name", ["remote", "inside"])
async def test_a_forked_worker_of_a_server_is_told_and_leaves_the_engine_alone(
    name: str, remote: RemoteEngine, inside: InProcessEngine
) -> None:
    engine = {"remote": remote, "inside": inside}[name]
    request = Request((70, 71, 72), SamplingParams(max_tokens=800, ignore_eos=True))
    stream = engine.submit(request)
    await anext(stream)

    def work() -> None:
        refused(lambda: engine.submit(request))
        refused(lambda: engine.stats().send(None))  # type: ignore[attr-defined]
        refused(lambda: stream.__anext__().send(None))  # type: ignore[attr-defined]
        stream.cancel()
        if name == "remote":
            with pytest.raises(StopIteration):
                engine.close().send(None)  # type: ignore[attr-defined]

    forked(work)
    *_, end = [event async for event in stream]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("length", 800)
    assert (await engine.stats()).running == 0
