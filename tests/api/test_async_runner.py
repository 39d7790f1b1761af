"""``AsyncRunner``: the answers of ``Runner``, an event loop that goes on meanwhile, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from mistralrs import (
    AsyncAnswerStream,
    AsyncRunner,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    EmbeddingRequest,
    EngineError,
    LoadError,
    RequestError,
    Runner,
    UsageError,
    Which,
)
from mistralrs.api.python_api.runner_options import RunnerOptions, TokenizeOptions
from tests.adapters.peft_adapters import write_adapter
from tests.architectures import VARIANTS, write_folder
from tests.tiny import TinyConfig, write_tiny

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
LONG: dict[str, Any] = {"temperature": 0, "max_tokens": 1900, "ignore_eos": True}

Test = Callable[..., Coroutine[Any, Any, None]]


def on_a_loop(test: Test) -> Callable[..., None]:
    """Runs the test on an event loop of its own."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 60))

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("async") / "tiny.gguf", TinyConfig(context=2048)).path


def which(file: Path) -> Which:
    return Which.GGUF(quantized_filename=str(file))


@asynccontextmanager
async def loaded(file: Path) -> AsyncIterator[AsyncRunner]:
    async with AsyncRunner(which(file), threads=1) as runner:
        yield runner


async def until_idle(runner: AsyncRunner) -> None:
    """Waits until nothing runs."""
    for _ in range(60_000):
        if not runner.stats().running:
            break
        await asyncio.sleep(0.001)
    stats = runner.stats()
    assert (stats.running, stats.free_blocks) == (0, stats.num_blocks)


async def until_running(runner: AsyncRunner) -> None:
    while not runner.stats().running:
        await asyncio.sleep(0.001)


def whole(answer: object) -> ChatCompletionResponse:
    assert isinstance(answer, ChatCompletionResponse)
    return answer


def test_its_options_are_those_of_a_runner() -> None:
    init = get_type_hints(Runner.__init__)
    assert get_type_hints(RunnerOptions) == {
        name: hint for name, hint in init.items() if name not in ("which", "return")
    }
    tokenizing = get_type_hints(Runner.tokenize)
    assert get_type_hints(TokenizeOptions) == {
        name: hint for name, hint in tokenizing.items() if name not in ("text", "return")
    }
    with pytest.raises(TypeError, match="max_seq"):
        AsyncRunner(Which.Auto("a/b"), max_seq=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="which must be a row of Which, not str"):
        AsyncRunner("a/b")  # type: ignore[arg-type]


def test_it_has_the_verbs_of_a_runner() -> None:
    public = {name for name in vars(Runner) if not name.startswith("_")}
    assert {name for name in vars(AsyncRunner) if not name.startswith("_")} == public | {"load", "of"}


@on_a_loop
async def test_one_model_for_threads_and_tasks(file: Path) -> None:
    request = ChatCompletionRequest("one cat", **GREEDY)
    with Runner(which(file), threads=1) as runner:
        shared = AsyncRunner.of(runner)
        answer = whole(await shared.send_chat_completion_request(request))
        assert answer.choices == whole(runner.send_chat_completion_request(request)).choices
        assert await shared.load() is shared
        assert shared.info == runner.info
        await shared.close()
        with pytest.raises(EngineError):
            runner.send_chat_completion_request(request)
    with pytest.raises(EngineError):
        await AsyncRunner.of(runner).send_chat_completion_request(request)


@on_a_loop
async def test_its_answers_are_those_of_a_runner(file: Path) -> None:
    texts = [f"{number} cats" for number in range(6)]
    with Runner(which(file), threads=1) as runner:
        alone = [
            whole(runner.send_chat_completion_request(ChatCompletionRequest(text, **GREEDY))).choices for text in texts
        ]
        continued = runner.send_completion_request(CompletionRequest("the cat", **GREEDY))
        vector = runner.send_embedding_request(EmbeddingRequest(["a", "b"]))
        ids = runner.tokenize("the cat")
        read = runner.detokenize(ids)
    async with loaded(file) as other:
        requests = [other.send_chat_completion_request(ChatCompletionRequest(text, **GREEDY)) for text in texts]
        assert [whole(answer).choices for answer in await asyncio.gather(*requests)] == alone
        again = await other.send_completion_request(CompletionRequest("the cat", **GREEDY))
        assert again.choices == continued.choices  # type: ignore[union-attr]
        both = await other.send_embedding_request(EmbeddingRequest(["a", "b"], hidden_states=True))
        assert both.data == vector.data
        assert len(both.hidden_states) == 2
        assert await other.tokenize("the cat") == ids
        assert await other.detokenize(ids) == read
        assert other.info.name == "tiny"


@pytest.mark.parametrize("n", [1, 3])
@on_a_loop
async def test_streamed_is_whole(file: Path, n: int) -> None:
    fields: dict[str, Any] = GREEDY | {"n_choices": n, "temperature": 1.5, "seed": 5}
    async with loaded(file) as runner:
        answer = whole(await runner.send_chat_completion_request(ChatCompletionRequest("hello", **fields)))
        stream = await runner.send_chat_completion_request(ChatCompletionRequest("hello", stream=True, **fields))
        assert isinstance(stream, AsyncAnswerStream)
        chunks = [chunk async for chunk in stream]
        assert [chunk async for chunk in stream] == []
        assert whole(await stream.get_final_completion()).choices == answer.choices
    for choice in answer.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content


@on_a_loop
async def test_a_stream_has_a_value_at_its_end(file: Path) -> None:
    async with loaded(file) as runner:
        asked = ChatCompletionRequest("hello", response_model=bool, seed=1, stream=True, max_tokens=12)
        stream = await runner.send_chat_completion_request(asked)
        assert isinstance(stream, AsyncAnswerStream)
        with pytest.raises(UsageError, match="was not read to the end"):
            _ = stream.parsed
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert stream.parsed is (text.strip() == "true")
        left = await runner.send_completion_request(CompletionRequest("hello", stream=True))
        assert isinstance(left, AsyncAnswerStream)
        await left.close()
        with pytest.raises(UsageError, match="was not read to the end"):
            await left.get_final_completion()


@on_a_loop
async def test_a_cancelled_task_frees_its_place(file: Path) -> None:
    async with loaded(file) as runner:
        drawn = runner.stats().completion_tokens
        request = ChatCompletionRequest("hello", n_choices=2, **LONG)
        task = asyncio.create_task(runner.send_chat_completion_request(request))
        await until_running(runner)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(runner)
        assert runner.stats().completion_tokens - drawn < LONG["max_tokens"] - 100


@on_a_loop
async def test_a_task_that_is_cancelled_before_it_is_submitted_leaves_nothing(file: Path) -> None:
    async with loaded(file) as runner:
        drawn = runner.stats().completion_tokens
        task = asyncio.create_task(runner.send_completion_request(CompletionRequest("the cat", **LONG)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(time.sleep, 0.05)  # the thread that prepares may submit it meanwhile
        await until_idle(runner)
        assert runner.stats().completion_tokens - drawn < LONG["max_tokens"] - 100


async def leave(streams: list[AsyncAnswerStream[Any]]) -> None:
    async with streams[0]:
        pass


async def close(streams: list[AsyncAnswerStream[Any]]) -> None:
    await streams[0].close()
    await streams[0].close()
    assert [chunk async for chunk in streams[0]] == []


async def let_go(streams: list[AsyncAnswerStream[Any]]) -> None:
    streams.clear()
    gc.collect()


async def time_out(streams: list[AsyncAnswerStream[Any]]) -> None:
    async def read() -> None:
        async for _ in streams[0]:
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("end", [leave, close, let_go, time_out])
@on_a_loop
async def test_who_leaves_a_stream_frees_its_place(file: Path, end: Callable[..., Coroutine[Any, Any, None]]) -> None:
    async with loaded(file) as runner:
        stream = await runner.send_completion_request(CompletionRequest("the cat", stream=True, **LONG))
        assert isinstance(stream, AsyncAnswerStream)
        assert (await anext(stream)).choices[0].finish_reason is None
        assert runner.stats().running == 1
        streams: list[AsyncAnswerStream[Any]] = [stream]
        del stream
        await end(streams)
        await until_idle(runner)


@on_a_loop
async def test_closing_ends_what_runs(file: Path) -> None:
    async with loaded(file) as runner:
        task = asyncio.create_task(runner.send_completion_request(CompletionRequest("the cat", **LONG)))
        await until_running(runner)
        await runner.close()
        with pytest.raises(EngineError, match="the request was cancelled"):
            await task
        await runner.close()
        with pytest.raises(EngineError, match="the runner is closed"):
            await runner.send_completion_request(CompletionRequest("the cat", **GREEDY))
        with pytest.raises(EngineError, match="the runner is closed"):
            await runner.load()


@on_a_loop
async def test_the_loop_goes_on_while_a_model_is_loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader waits for a callback of the loop, which would never run if loading blocked it."""
    ran = threading.Event()
    original = Runner.__init__

    def slow(self: Runner, *arguments: Any, **named: Any) -> None:
        assert ran.wait(60)
        original(self, *arguments, **named)

    monkeypatch.setattr(Runner, "__init__", slow)
    runner = AsyncRunner(which(file), threads=1)
    with pytest.raises(UsageError, match="has not loaded its model yet"):
        runner.stats()
    asyncio.get_running_loop().call_later(0.01, ran.set)
    assert await asyncio.gather(runner.load(), runner.load()) == [runner, runner]
    await runner.close()


@on_a_loop
async def test_a_cancelled_load_frees_the_model(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, closed = threading.Event(), threading.Event()
    original, close_it = Runner.__init__, Runner.close

    def slow(self: Runner, *arguments: Any, **named: Any) -> None:
        assert go.wait(60)
        original(self, *arguments, **named)

    def close(self: Runner) -> None:
        close_it(self)
        closed.set()

    monkeypatch.setattr(Runner, "__init__", slow)
    monkeypatch.setattr(Runner, "close", close)

    async def use() -> None:
        async with AsyncRunner(which(file), threads=1):
            raise AssertionError("it was cancelled before")

    task = asyncio.create_task(use())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    assert await asyncio.to_thread(closed.wait, 60)


@on_a_loop
async def test_warnings_about_a_grammar_are_python_s(file: Path) -> None:
    async with loaded(file) as runner:
        request = CompletionRequest("x", grammar="%%\nE: E '+' E | 'x' ;", grammar_type="yacc", max_tokens=2)
        with pytest.warns(UserWarning, match="the grammar has 1 conflicts") as warned:
            await runner.send_completion_request(request)
        assert warned[0].filename == __file__


@on_a_loop
async def test_errors_are_those_of_a_runner(file: Path) -> None:
    with pytest.raises(LoadError, match=r"absent.gguf does not exist"):
        async with AsyncRunner(Which.GGUF(quantized_filename="absent.gguf")):
            pass
    async with loaded(file) as runner:
        with pytest.raises(RequestError, match="logit_bias"):
            await runner.send_chat_completion_request(ChatCompletionRequest("x", logit_bias={10**6: 1.0}))
        with pytest.raises(TypeError, match="request must be a ChatCompletionRequest, not CompletionRequest"):
            await runner.send_chat_completion_request(CompletionRequest("x"))  # type: ignore[arg-type]


def test_one_runner_on_several_loops(file: Path) -> None:
    runner = AsyncRunner(which(file), threads=1)
    request = CompletionRequest("the cat", **GREEDY)

    async def ask() -> Any:
        await runner.load()
        return await runner.send_completion_request(request)

    async def begin() -> None:
        await runner.send_completion_request(CompletionRequest("the cat", stream=True, **LONG))

    first = asyncio.run(ask())
    asyncio.run(begin())  # its loop ends before its answer
    assert asyncio.run(ask()).choices == first.choices

    async def end() -> None:
        await until_idle(runner)
        await runner.close()

    asyncio.run(end())


@on_a_loop
async def test_adapters(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", VARIANTS["llama"])
    adapter = write_adapter(tmp_path / "style", base, seed=1, deviation=0.5)
    async with AsyncRunner(Which.Plain(str(base)), threads=1, max_adapters=1) as runner:
        plain = await runner.send_completion_request(CompletionRequest("the cat", **GREEDY))
        await runner.load_lora_adapter("style", adapter)
        assert [each.name for each in runner.lora_adapters()] == ["style"]
        styled = await runner.send_completion_request(CompletionRequest("the cat", "style", **GREEDY))
        assert styled.choices != plain.choices  # type: ignore[union-attr]
        await runner.unload_lora_adapter("style")
        assert runner.lora_adapters() == ()


# The default model


@on_a_loop
async def test_a_cancelled_task_of_the_default_model(default_model: Path) -> None:
    async with AsyncRunner(which(default_model)) as runner:
        request = ChatCompletionRequest("Count to a thousand.", temperature=0, max_tokens=1000, ignore_eos=True)
        task = asyncio.create_task(runner.send_chat_completion_request(request))
        await until_running(runner)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(runner)
        assert runner.stats().completion_tokens < 1000
        asked = [ChatCompletionRequest(f"What is {n} + {n}?", temperature=0, max_tokens=6) for n in range(4)]
        together = await asyncio.gather(*map(runner.send_chat_completion_request, asked))
        alone = [await runner.send_chat_completion_request(each) for each in asked]
        assert [whole(each).choices for each in together] == [whole(each).choices for each in alone]
