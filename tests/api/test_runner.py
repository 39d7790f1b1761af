"""``Runner``: the examples as printed, and answers that are the same whole, streamed, alone and among many."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy
import pytest
from pydantic import BaseModel

import mistralrs
from mistralrs import (
    AsyncRunner,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    ContextLengthError,
    EmbeddingRequest,
    EmbeddingResponse,
    EngineError,
    IncompleteAnswerError,
    LoadError,
    Message,
    RequestError,
    Role,
    Runner,
    UsageError,
    Which,
)
from mistralrs.api.load_options import LoadOptions, ModelSource
from mistralrs.api.local_model import LocalModel
from mistralrs.api.python_api.answer_stream import AnswerStream
from mistralrs.engine.config import SamplingParams
from mistralrs.engine.events import Delta
from tests.adapters.peft_adapters import write_adapter
from tests.api.tooling import HERMES
from tests.architectures import VARIANTS, write_folder
from tests.gguf_edits import drop, edited
from tests.gguf_of import write_gguf
from tests.hub import Repository, serving
from tests.tiny import TinyConfig, write_tiny

ROOT = Path(__file__).parents[2]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
LONG: dict[str, Any] = {"temperature": 0, "max_tokens": 1900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("runner") / "tiny.gguf", TinyConfig(context=2048)).path


@pytest.fixture(scope="module")
def runner(file: Path) -> Iterator[Runner]:
    with Runner(Which.GGUF(quantized_filename=str(file)), threads=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("runner") / "tiny-llama", VARIANTS["llama"])


def chat(runner: Runner, text: str = "hello", **fields: Any) -> ChatCompletionResponse:
    answer = runner.send_chat_completion_request(ChatCompletionRequest(text, **(GREEDY | fields)))
    assert isinstance(answer, ChatCompletionResponse)
    return answer


def complete(runner: Runner, text: str = "the cat", **fields: Any) -> CompletionResponse:
    answer = runner.send_completion_request(CompletionRequest(text, **(GREEDY | fields)))
    assert isinstance(answer, CompletionResponse)
    return answer


def begun(runner: Runner) -> AnswerStream[Any]:
    """A long stream, of which a piece has come."""
    stream = runner.send_completion_request(CompletionRequest("the cat", **LONG))
    assert isinstance(stream, AnswerStream)
    assert next(stream).choices[0].finish_reason is None
    return stream


def until_idle(runner: Runner) -> None:
    """Waits until nothing runs."""
    deadline = time.monotonic() + 60
    while runner.stats().running:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    stats = runner.stats()
    assert stats.free_blocks == stats.num_blocks


# The examples


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_example_of_the_readme_is_that_of_mistral_rs() -> None:
    assert "    which=Which.MistralGGUF(\n        tok_model_id=" in blocks("README.md")[0]


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_examples_run_as_printed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mistral = write_folder(tmp_path / "mistral", VARIANTS["mistral"])
    weights = write_gguf(tmp_path / "mistral.gguf", mistral).read_bytes()
    qwen = write_folder(tmp_path / "qwen2", VARIANTS["qwen2"])
    settings = json.loads((qwen / "tokenizer_config.json").read_text(encoding="utf-8"))
    (qwen / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": HERMES}), encoding="utf-8")
    repositories = {
        "mistralai/Mistral-7B-Instruct-v0.1": Repository(contents(mistral)),
        "TheBloke/Mistral-7B-Instruct-v0.1-GGUF": Repository({"mistral-7b-instruct-v0.1.Q4_K_M.gguf": weights}),
        "Qwen/Qwen2.5-1.5B-Instruct": Repository(contents(qwen)),
        "owner/style": Repository(contents(write_adapter(tmp_path / "style", qwen, seed=1))),
        "owner/law": Repository(contents(write_adapter(tmp_path / "law", qwen, seed=2))),
    }
    names: dict[str, Any] = {}
    with serving(repositories, monkeypatch, tmp_path / "hub"):
        for block in blocks(name):
            exec(compile(block, name, "exec", dont_inherit=True), names)
    names["runner"].close()
    out = capsys.readouterr().out
    assert out.strip()
    if name == "README.md":
        assert names["res"].usage.completion_tokens > 0
        assert out == f"{names['res'].choices[0].message.content}\n{names['res'].usage}\n"
    else:
        assert len(names["answers"]) == 8
        assert "F16 quantized to Q8_0" in out
        assert "\ngrammar grammar cannot be used: " in out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Answers


def test_what_was_loaded(runner: Runner) -> None:
    info = runner.info
    assert (info.name, info.architecture, info.quantization, info.threads) == ("tiny", "llama", "F32", 1)


def test_a_chat(runner: Runner) -> None:
    answer = chat(runner)
    [choice] = answer.choices
    assert (answer.object, answer.model, choice.message.role, choice.finish_reason) == (
        "chat.completion",
        "tiny",
        "assistant",
        "length",
    )
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 12 + answer.usage.prompt_tokens
    assert answer.timings.avg_compl_tok_per_sec is not None
    messages = [Message(Role.User, "hello")]
    again = runner.send_chat_completion_request(ChatCompletionRequest(messages, "any", **GREEDY))
    assert isinstance(again, ChatCompletionResponse)
    assert again.choices == answer.choices


def test_the_message_of_an_answer_goes_back_as_it_is(runner: Runner) -> None:
    first = chat(runner).choices[0].message
    asked: list[Any] = [Message(Role.User, "hello"), first, {"role": "user", "content": "and now?"}]
    spelled = [asked[0], Message(Role.Assistant, first.content), asked[2]]
    assert runner.tokenize(asked) == runner.tokenize(spelled)
    answers = [runner.send_chat_completion_request(ChatCompletionRequest(each, **GREEDY)) for each in (asked, spelled)]
    assert answers[0].choices == answers[1].choices  # type: ignore[union-attr]


def test_a_completion(runner: Runner) -> None:
    plain = complete(runner)
    dressed = complete(runner, n_choices=2, echo_prompt=True, suffix="!", logprobs=1)
    assert [choice.text for choice in dressed.choices] == [f"the cat{plain.choices[0].text}!"] * 2
    logprobs = dressed.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == dressed.usage.prompt_tokens + 12
    best = complete(runner, best_of=3, temperature=1, seed=1)
    assert len(best.choices) == 1
    assert best.usage.completion_tokens == 36


@pytest.mark.parametrize("fields", [{}, {"n_choices": 3, "temperature": 1.5, "seed": 5}, {"logprobs": True}])
def test_streamed_is_whole(runner: Runner, fields: dict[str, Any]) -> None:
    answer = chat(runner, **fields)
    request = ChatCompletionRequest("hello", stream=True, stream_options={"include_usage": True}, **(GREEDY | fields))
    stream = runner.send_chat_completion_request(request)
    assert isinstance(stream, AnswerStream)
    *chunks, last = stream
    assert list(stream) == []
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == answer.usage.completion_tokens
    for choice in answer.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        tokens = [token for part in parts if part.logprobs for token in part.logprobs.content]
        assert tokens == (choice.logprobs.content if choice.logprobs else [])
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_streamed_completion_is_whole(runner: Runner) -> None:
    stream = runner.send_completion_request(CompletionRequest("the cat", stream=True, echo_prompt=True, **GREEDY))
    assert isinstance(stream, AnswerStream)
    text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == complete(runner, echo_prompt=True).choices[0].text


def test_a_stop_string_may_spell_a_control_token(runner: Runner) -> None:
    """In a chat and in a completion, whole and streamed, for each choice; the token has no text and is counted."""
    often: dict[str, Any] = {"logit_bias": {1: 9.0}, "temperature": 1.0, "seed": 3, "n_choices": 3, "max_tokens": 40}
    free = complete(runner, logprobs=0, **often)
    stopped = complete(runner, logprobs=0, stop_seqs=["<|im_start|>"], **often)
    for choice, other in zip(free.choices, stopped.choices, strict=True):
        assert choice.logprobs is not None
        assert other.logprobs is not None
        place = choice.logprobs.tokens.index("<|im_start|>")
        assert other.finish_reason == "stop"
        assert other.logprobs.tokens == choice.logprobs.tokens[: place + 1]
        assert "<|im_start|>" not in choice.text
        assert choice.text.startswith(other.text)
    assert [
        choice.finish_reason for choice in chat(runner, stop_seqs="<|im", **(often | {"max_tokens": 300})).choices
    ] == ["stop"] * 3
    request = CompletionRequest("the cat", stop_seqs="<|im_start|>", stream=True, **(GREEDY | often))
    chunks = list(runner.send_completion_request(request))
    for choice in stopped.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]  # type: ignore[union-attr]
        assert "".join(part.text for part in parts) == choice.text
        assert parts[-1].finish_reason == "stop"


def test_the_row_s_repeat_last_n_is_the_default_of_requests(runner: Runner, file: Path) -> None:
    looking: dict[str, Any] = {"repetition_penalty": 5.0, "max_tokens": 24}
    with Runner(Which.GGUF(quantized_filename=str(file), repeat_last_n=1), threads=1) as short:
        forgetful = complete(short, **looking)
        assert forgetful.choices == complete(runner, repeat_last_n=1, **looking).choices
        assert complete(short, repeat_last_n=64, **looking).choices == complete(runner, **looking).choices
    assert forgetful.choices != complete(runner, **looking).choices


def test_the_rates_of_mistral_rs(runner: Runner) -> None:
    for answer in (chat(runner, n_choices=2), complete(runner)):
        usage, timings = answer.usage, answer.timings
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        for name in (
            *("avg_tok_per_sec", "avg_prompt_tok_per_sec", "avg_compl_tok_per_sec"),
            *("total_time_sec", "total_prompt_time_sec", "total_completion_time_sec"),
        ):
            assert getattr(usage, name) == getattr(timings, name)
        assert usage.total_time_sec > 0


def test_a_response_model_has_a_value(runner: Runner) -> None:
    class Place(BaseModel):
        is_city: bool
        size: Literal["small", "large"]
        near: list[bool] | None = None

    answer = chat(runner, response_model=Place, max_tokens=200, ignore_eos=False, temperature=2, n_choices=4, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason in ("stop", "length")
        if choice.finish_reason == "stop":
            assert answer.parsed_choice(choice.index) == Place.model_validate_json(choice.message.content)
    assert isinstance(chat(runner, response_model=bool, ignore_eos=False).parsed, bool)
    with pytest.raises(IncompleteAnswerError, match="was cut"):
        _ = chat(runner, response_model=Place, max_tokens=3, ignore_eos=False).parsed
    with pytest.raises(UsageError, match="has no response_model"):
        _ = chat(runner).parsed


def test_a_stream_has_the_whole_answer_at_its_end(runner: Runner) -> None:
    asked: dict[str, Any] = {**GREEDY, "temperature": 2, "seed": 1, "ignore_eos": False}
    structured = {**asked, "response_model": bool, "n_choices": 2}
    stream = runner.send_chat_completion_request(ChatCompletionRequest("hello", stream=True, **structured))
    assert isinstance(stream, AnswerStream)
    next(stream)
    with pytest.raises(UsageError, match="was not read to the end"):
        _ = stream.parsed
    final = stream.get_final_completion()
    stream.close()
    whole = chat(runner, "hello", **structured)
    assert isinstance(final, ChatCompletionResponse)
    assert final.choices == whole.choices
    assert final.usage.completion_tokens == whole.usage.completion_tokens
    assert stream.parsed is whole.parsed
    assert final.parsed_choice(1) is whole.parsed_choice(1)


def test_a_stream_that_was_left_has_no_whole_answer(runner: Runner) -> None:
    with runner.send_completion_request(CompletionRequest("hello", **LONG)) as stream:
        assert isinstance(stream, AnswerStream)
        next(stream)
    with pytest.raises(UsageError, match="was not read to the end"):
        stream.get_final_completion()
    until_idle(runner)
    short = runner.send_completion_request(CompletionRequest("hello", stream=True, **GREEDY))
    assert isinstance(short, AnswerStream)
    text = "".join(chunk.choices[0].text for chunk in short)
    final = short.get_final_completion()
    assert isinstance(final, CompletionResponse)
    assert (final.choices[0].text, final.usage.completion_tokens) == (text, GREEDY["max_tokens"])
    with pytest.raises(UsageError, match="a text completion has no response_model"):
        _ = short.parsed


def test_a_stream_that_fails_has_no_whole_answer(runner: Runner) -> None:
    def fail(tokens: Sequence[int]) -> bool:
        raise ValueError("mine")

    asked = CompletionRequest("hello", stream=True, stopping_rules=[fail], **GREEDY)
    stream = runner.send_completion_request(asked)
    assert isinstance(stream, AnswerStream)
    with pytest.raises(EngineError, match="mine"):
        stream.get_final_completion()
    with pytest.raises(UsageError, match="was not read to the end"):
        stream.get_final_completion()


# Tokens and embeddings


def test_tokens(runner: Runner) -> None:
    ids = runner.tokenize("the cat <|im_start|>")
    answer = complete(runner, "the cat <|im_start|>", echo_prompt=True, logprobs=0, max_tokens=0)
    assert len(ids) == answer.usage.prompt_tokens
    assert runner.detokenize(ids) == "the cat <|im_start|>"
    plain = runner.tokenize("the cat <|im_start|>", parse_special=False)
    assert len(plain) > len(ids)
    assert runner.detokenize(plain) == "the cat <|im_start|>"
    assert len(runner.tokenize("x" * 5000)) > runner.info.context_length
    assert runner.detokenize([]) == ""


def test_tokens_of_messages(runner: Runner) -> None:
    messages = [Message(Role.System, "Be brief."), {"role": "user", "content": "hello"}]
    ids = runner.tokenize(messages)
    answer = runner.send_chat_completion_request(ChatCompletionRequest(messages, **GREEDY))
    assert isinstance(answer, ChatCompletionResponse)
    assert len(ids) == answer.usage.prompt_tokens
    again = runner.send_completion_request(CompletionRequest(ids, **GREEDY))
    assert isinstance(again, CompletionResponse)
    assert again.choices[0].text.lstrip() == answer.choices[0].message.content.lstrip()
    closed = runner.tokenize(messages, add_generation_prompt=False)
    assert ids[: len(closed)] == closed
    assert len(closed) < len(ids)


def test_tokens_that_there_cannot_be(runner: Runner) -> None:
    for wrong in (10**6, -1):
        with pytest.raises(RequestError, match=f"{wrong} is no token"):
            runner.detokenize([1, wrong])
    with pytest.raises(RequestError, match="would be ignored: add_generation_prompt"):
        runner.tokenize("x", add_generation_prompt=True)
    with pytest.raises(RequestError, match="would be ignored: parse_special"):
        runner.tokenize([Message(Role.User, "x")], parse_special=True)
    with pytest.raises(RequestError, match=r"messages\[0\].role must be"):
        runner.tokenize([Message("me", "x")])


def test_embeddings(runner: Runner) -> None:
    answer = runner.send_embedding_request(EmbeddingRequest(["the cat", "a dog"]))
    assert isinstance(answer, EmbeddingResponse)
    assert [entry.index for entry in answer.data] == [0, 1]
    vectors = [entry.embedding for entry in answer.data]
    assert all(sum(value * value for value in map(float, vector)) == pytest.approx(1) for vector in vectors)
    assert vectors[0] != vectors[1]
    assert answer.usage.prompt_tokens == len(runner.tokenize("the cat")) + len(runner.tokenize("a dog"))
    last = runner.send_embedding_request(EmbeddingRequest("the cat", pooling="last"))
    assert last.data[0].embedding != vectors[0]
    with pytest.raises(RequestError, match="would be ignored: user"):
        EmbeddingRequest("x", user="me")
    with pytest.raises(UsageError, match="did not ask"):
        _ = last.hidden_states
    with pytest.raises(TypeError, match="request must be an EmbeddingRequest, not str"):
        runner.send_embedding_request("x")  # type: ignore[arg-type]


def test_hidden_states(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that the embedding pools, of all tokens of each text, also where a prefix was cached."""
    texts = ["the cat", "a dog"]
    for pooling in ("mean", "last"):
        answer = runner.send_embedding_request(EmbeddingRequest(texts, pooling=pooling, hidden_states=True))
        for text, states, entry in zip(texts, answer.hidden_states, answer.data, strict=True):
            assert states.shape == (len(runner.tokenize(text)), len(entry.embedding))
            assert states.dtype == numpy.float32
            assert states.flags.writeable
            pooled = states.mean(axis=0, dtype=numpy.float64) if pooling == "mean" else states[-1].astype(numpy.float64)
            assert entry.embedding == pytest.approx(list(pooled / numpy.linalg.norm(pooled)), abs=1e-12)
    with pytest.raises(RequestError, match="numbers"):
        EmbeddingRequest("x", hidden_states=True, encoding_format="base64")
    monkeypatch.setattr("mistralrs.api.python_api.python_model.MAX_HIDDEN_BYTES", 100)
    with pytest.raises(RequestError, match="hidden states of") as raised:
        runner.send_embedding_request(EmbeddingRequest("the cat", hidden_states=True))
    assert raised.value.param == "hidden_states"


# Functions that take part in sampling


def test_functions_of_a_request(runner: Runner) -> None:
    seen: list[tuple[int, ...]] = []
    drawn = complete(runner, n_choices=2, max_tokens=4)
    prompt = runner.tokenize("the cat")

    def only(tokens: Sequence[int], logits: Any) -> None:
        seen.append(tuple(tokens))
        logits[:] = -100.0
        logits[prompt[-1]] = 0.0

    forced = complete(runner, max_tokens=4, logits_processors=[only])
    assert seen == [(*prompt, *[prompt[-1]] * count) for count in range(4)]
    assert forced.choices[0].text == runner.detokenize([prompt[-1]] * 4)
    stopped = complete(runner, stopping_rules=[lambda tokens: len(tokens) == len(prompt) + 2])
    assert (stopped.choices[0].finish_reason, stopped.usage.completion_tokens) == ("stop", 2)
    assert drawn.choices[0].text.startswith(stopped.choices[0].text)
    chats = ChatCompletionRequest("hello", stopping_rules=[lambda tokens: True], stream=True, n_choices=2, **GREEDY)
    chunks = list(runner.send_chat_completion_request(chats))
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == [
        "stop"
    ] * 2  # type: ignore[union-attr]


def test_a_function_that_raises_fails_its_request_alone(runner: Runner) -> None:
    def fail(tokens: Sequence[int], logits: Any) -> None:
        raise ValueError("no luck")

    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(complete, runner, max_tokens=40)
        with pytest.raises(EngineError, match="the logits processor fail failed: ValueError: no luck") as refused:
            complete(runner, logits_processors=[fail])
        assert beside.result().choices == complete(runner, max_tokens=40).choices
    assert refused.value.code == "hook_failed"
    for wrong in ({"logits_processors": fail}, {"stopping_rules": [3]}):
        with pytest.raises(TypeError, match="must be a list of functions"):
            CompletionRequest("x", **wrong)  # type: ignore[arg-type]


# Threads and ends


def test_32_threads_give_what_one_gives(runner: Runner) -> None:
    def ask(seed: int) -> str:
        return chat(runner, f"{seed} cats", temperature=1.2, seed=seed, max_tokens=20).choices[0].message.content

    alone = [ask(seed) for seed in range(64)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(64))) == alone
    assert len(set(alone)) > 32


def test_requests_of_several_threads_run_in_one_batch(runner: Runner) -> None:
    streams = [begun(runner) for _ in range(3)]
    try:
        assert runner.stats().running == 3
        assert chat(runner).usage.completion_tokens == 12  # while they run
    finally:
        for stream in streams:
            stream.close()
    until_idle(runner)


def let_go(stream: list[AnswerStream[Any]]) -> None:
    stream.clear()
    gc.collect()


def leave(stream: list[AnswerStream[Any]]) -> None:
    with stream[0]:
        pass


def close(stream: list[AnswerStream[Any]]) -> None:
    stream[0].close()
    stream[0].close()
    assert list(stream[0]) == []


@pytest.mark.parametrize("end", [let_go, leave, close])
def test_who_leaves_a_stream_frees_its_place(runner: Runner, end: Callable[[list[AnswerStream[Any]]], None]) -> None:
    stream = [begun(runner)]
    assert runner.stats().running == 1
    drawn = runner.stats().completion_tokens
    end(stream)
    until_idle(runner)
    assert runner.stats().completion_tokens - drawn < LONG["max_tokens"] - 100


def test_a_stream_that_was_never_read_is_cancelled_too(runner: Runner) -> None:
    drawn = runner.stats().completion_tokens
    runner.send_completion_request(CompletionRequest("the cat", **LONG))
    until_idle(runner)
    assert runner.stats().completion_tokens - drawn < LONG["max_tokens"] - 100


def test_closed_by_another_thread_a_stream_ends(runner: Runner) -> None:
    stream = begun(runner)
    threading.Timer(0.05, stream.close).start()
    assert sum(len(chunk.choices) for chunk in stream) < LONG["max_tokens"]
    until_idle(runner)


def test_a_stream_keeps_its_model(file: Path) -> None:
    stream = Runner(Which.GGUF(quantized_filename=str(file)), threads=1).send_completion_request(
        CompletionRequest("the cat", stream=True, **GREEDY)
    )
    gc.collect()
    assert isinstance(stream, AnswerStream)
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"


def test_closing_ends_what_runs(file: Path) -> None:
    runner = Runner(Which.GGUF(quantized_filename=str(file)), threads=1, max_draft=0)
    stream = begun(runner)
    threading.Timer(0.05, runner.close).start()
    with pytest.raises(EngineError, match="the request was cancelled"):
        list(stream)
    runner.close()
    runner.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        chat(runner)


def test_a_failed_step_is_told_to_everyone_and_is_no_end(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no luck")

    with monkeypatch.context() as patch:
        patch.setattr(runner._model.engine._core._executor, "forward", fail)
        with pytest.raises(EngineError, match="the model failed: RuntimeError: no luck"):
            chat(runner, n_choices=2)
        request = ChatCompletionRequest("hello", stream=True, **GREEDY)
        stream = runner.send_chat_completion_request(request)
        with pytest.raises(EngineError, match="no luck"):
            list(stream)
        assert list(stream) == []
    assert chat(runner).choices[0].finish_reason == "length"
    until_idle(runner)


# In-situ quantization


@pytest.mark.parametrize("kind", ["q8_0", "Q4_1"])
def test_in_situ_quantisation_is_that_of_the_command_line(folder: Path, kind: str) -> None:
    source = ModelSource("llama", folder, None, None)
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    with LocalModel.load(source, LoadOptions(isq=kind.lower(), threads=1)) as model:
        prompt = model.tokenizer.encode("the cat", special=True, bos=model.tokenizer.add_bos)
        expected = "".join(event.text for event in model.complete(prompt, sampling) if isinstance(event, Delta))
        said = model.info.quantization
    with Runner(Which.Llama(str(folder)), in_situ_quant=kind, threads=1) as runner:
        assert runner.info.quantization == said == f"F16 quantized to {kind.upper()}"
        assert complete(runner).choices[0].text == expected


def test_in_situ_quantisation_is_refused_as_on_the_command_line(file: Path) -> None:
    with pytest.raises(UsageError, match="gguf is a file that is quantized already"):
        Runner(Which.GGUF(quantized_filename=str(file)), in_situ_quant="q4_k")
    with pytest.raises(UsageError, match="'q9'") as refused:
        Runner(Which.Llama(), in_situ_quant="q9")
    assert "q8_0" in (refused.value.hint or "")
    with pytest.raises(LoadError, match="is a GGUF file, whose"):
        Runner(Which.Auto(str(file)), in_situ_quant="q4_k")


# Refusals


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"max_seqs": 0}, UsageError, "max_seqs is 0"),
        ({"max_seqs": "16"}, TypeError, "max_seqs must be a whole number, not str"),
        ({"max_seqs": None}, TypeError, "max_seqs must be a whole number, not NoneType"),
        ({"prefix_cache_n": -1}, UsageError, "prefix_cache_n is -1"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"kv_memory": True}, TypeError, "kv_memory must be a whole number, not bool"),
        ({"max_draft": -1}, UsageError, "max_draft is -1"),
        ({"draft_model": "none/such.gguf"}, LoadError, "none/such.gguf does not exist"),
        ({"draft_model": 4}, TypeError, "draft_model must be a path or a repository, not int"),
        ({"precision": "best"}, UsageError, "precision is 'best'"),
        ({"dtype": "f64"}, UsageError, "dtype is 'f64'"),
        ({"kv_cache_dtype": "f32"}, UsageError, "kv_cache_dtype is 'f32'"),
        ({"kv_cache_dtype": "bf16", "precision": "high"}, UsageError, "precision='high' keeps keys and values in f16"),
        ({"no_kv_cache": 1}, TypeError, "no_kv_cache must be bool, not int"),
        ({"no_pack": 1}, TypeError, "no_pack must be bool, not int"),
        ({"token_source": None}, TypeError, "token_source must be str, not NoneType"),
        ({"in_situ_quant": 4}, TypeError, "in_situ_quant must be"),
        ({"kv_dir": "kv", "no_kv_cache": True}, UsageError, "kv_dir keeps what no_kv_cache=True throws away"),
        ({"max_draft": 4, "no_kv_cache": True}, UsageError, "max_draft has no effect"),
        ({"num_device_layers": 4}, UsageError, "num_device_layers=4 puts layers on an accelerator"),
        ({"num_device_layers": ["0:4", "1:2"]}, UsageError, "puts layers on an accelerator"),
        ({"num_device_layers": -1}, UsageError, "num_device_layers is -1"),
        ({"num_device_layers": ["4"]}, UsageError, r"num_device_layers is \['4'\]"),
        ({"num_device_layers": "0:4"}, TypeError, "num_device_layers must be a whole number or a list"),
        ({"num_device_layers": True}, TypeError, "num_device_layers must be a whole number or a list"),
    ],
)
def test_options_are_refused_before_anything_is_read(options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        Runner(Which.GGUF(quantized_filename="absent.gguf"), **options)


def test_options_reach_the_model(file: Path, tmp_path: Path) -> None:
    which = Which.GGUF(quantized_filename=str(file))
    with Runner(which, 2, False, 1, "literal:x", "{{ messages[0].content }}", 0, threads=1, kv_dir=tmp_path) as runner:
        assert chat(runner, "the cat").choices[0].message.content.lstrip() == complete(runner).choices[0].text.lstrip()
        assert runner._model.engine.config.max_seqs == 2
        assert runner._model.engine.config.prefix_cache_n == 1
    assert any(tmp_path.iterdir())


def test_what_cannot_be_asked(runner: Runner) -> None:
    with pytest.raises(TypeError, match="which must be a row of Which, not str"):
        Runner("mistral")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="request must be a ChatCompletionRequest, not CompletionRequest"):
        runner.send_chat_completion_request(CompletionRequest("x"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="request must be a CompletionRequest, not str"):
        runner.send_completion_request("x")  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError, match="2048 tokens"):
        chat(runner, "x" * 3000)
    with pytest.raises(RequestError, match="logit_bias"):
        chat(runner, logit_bias={10**6: 1.0})
    with pytest.raises(RequestError, match=r"would be ignored: messages\.mood"):
        runner.send_chat_completion_request(ChatCompletionRequest([{"role": "user", "content": "x", "mood": "good"}]))
    with pytest.raises(RequestError, match=r"would be ignored: stream_options\.x"):
        chat(runner, stream_options={"x": 1})


def test_warnings_about_a_grammar_are_python_s(runner: Runner) -> None:
    for ask in (chat, complete):
        with pytest.warns(UserWarning, match="the grammar has 1 conflicts") as warned:
            ask(runner, grammar="%%\nE: E '+' E | 'x' ;", grammar_type="yacc", max_tokens=2)
        assert warned[0].filename == __file__


def test_a_model_that_cannot_chat_completes(file: Path, tmp_path: Path) -> None:
    bare = edited(file, tmp_path / "bare.gguf", drop("tokenizer.chat_template"))
    with Runner(Which.GGUF(quantized_filename=str(bare)), threads=1) as runner:
        with pytest.raises(RequestError, match="tiny has no chat template") as refused:
            chat(runner)
        assert "chat_template" in (refused.value.hint or "")
        assert complete(runner).usage.completion_tokens == 12


@pytest.mark.parametrize(
    ("options", "kind", "said", "hint"),
    [
        ({"merge": "yes"}, TypeError, "merge must be bool, not str", None),
        ({"merge": True}, UsageError, "merge: there is no adapter", "a row with LoRA, such as Which.LoraLlama"),
        ({"max_adapters": True}, TypeError, "max_adapters must be a whole number", None),
        ({"max_adapters": 0}, UsageError, "max_adapters is 0", "it must be at least 1"),
        ({"max_adapters": 1025}, UsageError, "max_adapters is 1025", "it must be at most 1024"),
    ],
)
def test_options_of_adapters(options: dict[str, Any], kind: type[Exception], said: str, hint: str | None) -> None:
    with pytest.raises(kind, match=said) as refused:
        Runner(Which.Auto("owner/base"), **options)
    assert (hint or "") in (getattr(refused.value, "hint", None) or "")


# The names


def test_public_names_are_documented() -> None:
    guide = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in mistralrs.__all__:
        if name != "__version__":
            assert re.search(rf"\b{name}\b", guide), name
            assert getattr(mistralrs, name).__doc__, name
    for kind in (Runner, AsyncRunner):
        for name, member in vars(kind).items():
            if not name.startswith("_"):
                assert re.search(rf"\b{name}\b", guide), name
                assert member.__doc__, name


def test_public_names_are_imported_when_they_are_asked_for() -> None:
    assert set(mistralrs.__all__) <= set(dir(mistralrs))
    assert mistralrs.ChatCompletionResponse.__name__ == "ChatCompletionResponse"
    with pytest.raises(AttributeError, match="module 'mistralrs' has no attribute 'Runer'"):
        _ = mistralrs.Runer  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [("import mistralrs", {"torch", "numpy", "pydantic"}), ("from mistralrs import Runner, Which", {"torch", "numpy"})],
)
def test_importing_costs_little(statement: str, absent: set[str]) -> None:
    program = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "mistralrs.errors" in loaded
    assert not loaded & absent
