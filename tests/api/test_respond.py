"""Answers: the shapes that clients rely on, the order of chunks, sums, and what happens when something goes wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import openai.types
import openai.types.chat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState

from mistralrs.api.engine_client.async_stream import AsyncStream
from mistralrs.api.schemas import response_bodies
from mistralrs.api.schemas.output_chunk import OutputChunk
from mistralrs.api.schemas.request_bodies import ChatCompletionBody, CompletionBody, EmbeddingBody, parse
from mistralrs.api.serving.answers.respond import Answer, AnswerError, answer_id, embeddings, submit
from mistralrs.api.serving.answers.response_builder import ResponseBuilder
from mistralrs.api.serving.prepare import Prepared, prepare_chat, prepare_completion, prepare_embeddings
from mistralrs.engine.config import Request
from mistralrs.engine.events import (
    Delta,
    Embedding,
    Event,
    Failed,
    Finished,
    FinishReason,
    PromptLogprobs,
    TokenLogprob,
    Usage,
)
from mistralrs.errors import EngineError, QueueFullError
from tests.api.served import POLICY, byte_tokenizer, piece_tokenizer, served

BROKEN = EngineError("the model failed")


def chat(**fields: Any) -> Prepared:
    body = parse(ChatCompletionBody, json.dumps({"messages": "hi", "seed": 5, **fields}).encode())
    return prepare_chat(body, served(), POLICY)


def complete(**fields: Any) -> Prepared:
    body = parse(CompletionBody, json.dumps({"prompt": "hello", "seed": 5, **fields}).encode())
    return prepare_completion(body, served(), POLICY)


def answer(prepared: Prepared) -> Answer:
    return Answer(prepared, id="chatcmpl-1", created=1780000000, model_name="org/tiny")


def usage(tokens: int, *, prompt: int = 4, cached: int = 0) -> Usage:
    return Usage(prompt, cached, tokens, prompt_s=0.5, completion_s=2.0, first_token_s=0.5, seed=5)


def said(*texts: str, reason: FinishReason = "stop", cached: int = 0) -> list[Event]:
    """A choice of one token a text, and the token that ended it."""
    tokens = [Delta(text, (place,), ()) for place, text in enumerate(texts)]
    return [*tokens, Finished(reason, usage(len(texts) + 1, cached=cached))]


class Script:
    """Streams that say what was written down, and remember who cancelled them."""

    def __init__(self, *choices: Sequence[Event]) -> None:
        self.cancelled: list[int] = []
        self.streams = [AsyncStream(partial(self.cancelled.append, place)) for place in range(len(choices))]
        for stream, events in zip(self.streams, choices, strict=True):
            for event in events:
                stream.put(event)


def whole(prepared: Prepared, *choices: Sequence[Event]) -> dict[str, Any]:
    return asyncio.run(answer(prepared).whole(Script(*choices).streams))


def streamed(prepared: Prepared, *choices: Sequence[Event]) -> list[OutputChunk]:
    async def listen() -> list[OutputChunk]:
        return [chunk async for chunk in answer(prepared).events(Script(*choices).streams)]

    return asyncio.run(listen())


def bodies(prepared: Prepared, chunks: Sequence[OutputChunk]) -> list[dict[str, Any]]:
    """Chunks as clients read them."""
    builder = ResponseBuilder(prepared, id="chatcmpl-1", created=1780000000, model_name="org/tiny")
    return [builder.chunk_body(chunk) for chunk in chunks]


def streamed_bodies(prepared: Prepared, *choices: Sequence[Event]) -> list[dict[str, Any]]:
    return bodies(prepared, streamed(prepared, *choices))


def logprob(token: str, value: float, *, data: bytes | None = None, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(1, token, token.encode() if data is None else data, value, top)


# Chats


def test_a_whole_chat() -> None:
    prepared = chat()
    body = whole(prepared, said("Hel", "lo", cached=3))
    prompt = len(prepared.requests[0].prompt)
    assert body == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1780000000,
        "model": "org/tiny",
        "system_fingerprint": "local",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": 3,
            "total_tokens": prompt + 3,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "timings": {
            "avg_tok_per_sec": 7 / 2.5,
            "avg_prompt_tok_per_sec": 8.0,
            "avg_compl_tok_per_sec": 1.5,
            "total_time_sec": 2.5,
            "total_prompt_time_sec": 0.5,
            "total_completion_time_sec": 2.0,
            "seed": 5,
        },
    }
    response_bodies.ChatCompletion.model_validate(body)
    openai.types.chat.ChatCompletion.model_validate(body, strict=True)


def test_a_chat_as_chunks() -> None:
    prepared = chat()
    chunks = streamed(prepared, said("Hel", "", "\u2028é"))
    assert chunks[:3] == [OutputChunk(0, "", role="assistant"), OutputChunk(0, "Hel"), OutputChunk(0, "\u2028é")]
    [last] = chunks[3:]
    assert last == OutputChunk(0, finish_reason="stop", timings=last.timings)
    assert last.timings is not None
    assert last.timings["seed"] == 5
    first, *_, ending = bodies(prepared, chunks)
    assert first == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1780000000,
        "model": "org/tiny",
        "system_fingerprint": "local",
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
    }
    assert ending["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


def test_usage_only_where_it_is_asked_for() -> None:
    assert all("usage" not in chunk for chunk in streamed_bodies(chat(), said("a")))
    prepared = chat(n=2, stream_options={"include_usage": True})
    *others, last = streamed_bodies(prepared, said("a"), said("b", "c"))
    assert {chunk["usage"] for chunk in others} == {None}
    assert last["choices"] == []
    assert last["usage"] == whole(prepared, said("a"), said("b", "c"))["usage"]
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (len(prepared.requests[0].prompt), 5)


def test_a_choice_without_a_word() -> None:
    prepared = chat()
    end: list[Event] = [Finished("length", usage(0))]
    assert whole(prepared, end)["choices"][0]["message"]["content"] == ""
    first, last = streamed_bodies(prepared, end)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "length"


def test_rates_without_time_are_null() -> None:
    nothing = Usage(4, 0, 0, prompt_s=0.0, completion_s=0.0, first_token_s=0.0, seed=5)
    timings = whole(chat(), [Finished("stop", nothing)])["timings"]
    assert timings["avg_compl_tok_per_sec"] is timings["avg_tok_per_sec"] is timings["avg_prompt_tok_per_sec"] is None


def test_draft_tokens_are_reported_where_there_were_some() -> None:
    ends = [
        replace(usage(3), drafted_tokens=drafted, accepted_tokens=accepted) for drafted, accepted in ((9, 4), (0, 0))
    ]
    choices: list[list[Event]] = [[Delta("a", (1,), ()), Finished("stop", end)] for end in ends]
    body = whole(chat(n=2), *choices)
    assert (body["timings"]["draft_n"], body["timings"]["draft_n_accepted"]) == (9, 4)
    response_bodies.ChatCompletion.model_validate(body)
    last = streamed_bodies(chat(), choices[0])[-1]
    assert (last["timings"]["draft_n"], last["timings"]["draft_n_accepted"]) == (9, 4)
    response_bodies.ChatCompletionChunk.model_validate(last)
    assert "draft_n" not in whole(chat(), choices[1])["timings"]


def test_log_probabilities_of_a_chat() -> None:
    top = (logprob("a", -0.5), logprob("b", -math.inf))
    spoken: list[Event] = [
        Delta("", (1,), (logprob("�", -0.5, data=b"\xc3", top=top),)),
        Delta("é", (2,), (logprob("�", -math.inf, data=b"\xa9"),)),
        Delta("", (), ()),
        Finished("stop", usage(3)),
    ]
    expected = [
        {
            "token": "�",
            "logprob": -0.5,
            "bytes": [0xC3],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "b", "logprob": -9999.0, "bytes": [98]},
            ],
        },
        {"token": "�", "logprob": -9999.0, "bytes": [0xA9], "top_logprobs": []},
    ]
    prepared = chat(logprobs=True, top_logprobs=2)
    body = whole(prepared, spoken)
    assert body["choices"][0]["logprobs"] == {"content": expected}
    response_bodies.ChatCompletion.model_validate(body)
    _, first, second, _ = streamed_bodies(prepared, spoken)
    assert first["choices"][0] == {
        "index": 0, "delta": {"content": ""}, "logprobs": {"content": expected[:1]}, "finish_reason": None
    }  # fmt: skip
    assert second["choices"][0]["logprobs"] == {"content": expected[1:]}


def test_timings_of_each_token() -> None:
    role, first, second, last = streamed_bodies(chat(timings_per_token=True), said("a", "b"))
    assert "timings" not in role
    for number, chunk in ((1, first), (2, second)):
        timings = response_bodies.ChunkTimings.model_validate(chunk["timings"])
        assert timings.completion_tokens == number
        assert timings.total_time_sec > 0
    response_bodies.Timings.model_validate(last["timings"])


CHOICES = st.lists(
    st.tuples(st.lists(st.text(max_size=3), max_size=5), st.sampled_from(["stop", "length"])), min_size=1, max_size=4
)


@given(spoken=CHOICES, data=st.data())
def test_a_stream_says_what_the_whole_answer_says(
    spoken: list[tuple[list[str], FinishReason]], data: st.DataObject
) -> None:
    """In whatever order choices speak; read by OpenAI's own client, which fails on wrong orders."""
    choices = [said(*texts, reason=reason) for texts, reason in spoken]
    order = data.draw(st.permutations([place for place, events in enumerate(choices) for _ in events]))
    prepared = chat(n=len(choices), stream_options={"include_usage": True})
    cancelled: list[int] = []
    streams = [AsyncStream(lambda: cancelled.append(1)) for _ in choices]

    async def speak() -> None:
        left = [iter(events) for events in choices]
        for place in order:
            streams[place].put(next(left[place]))
            await asyncio.sleep(0)

    async def listen() -> list[OutputChunk]:
        speaking = asyncio.create_task(speak())
        chunks = [chunk async for chunk in answer(prepared).events(streams)]
        await speaking
        return chunks

    heard = bodies(prepared, asyncio.run(listen()))
    expected = whole(prepared, *choices)
    state = ChatCompletionStreamState()
    seen: list[int] = []
    for chunk in heard:
        response_bodies.ChatCompletionChunk.model_validate(chunk)
        state.handle_chunk(openai.types.chat.ChatCompletionChunk.model_validate(chunk))
        for choice in chunk["choices"]:
            seen += [choice["index"]] if choice["index"] not in seen else []
    assert seen == list(range(len(choices)))
    assert sum("role" in choice["delta"] for chunk in heard for choice in chunk["choices"]) == len(choices)
    built = state.current_completion_snapshot
    assert [(choice.message.content, choice.message.role) for choice in built.choices] == [
        (choice["message"]["content"], "assistant") for choice in expected["choices"]
    ]
    assert [choice.finish_reason for choice in built.choices] == [reason for _, reason in spoken]
    assert built.usage is not None
    assert built.usage.model_dump(exclude_unset=True) == expected["usage"]
    assert cancelled == []


# Completions


def test_a_whole_completion() -> None:
    body = whole(complete(prompt=["a", "b"], n=2), *(said(text) for text in "wxyz"))
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "w"), (1, "x"), (2, "y"), (3, "z")]
    assert (body["object"], body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (
        "text_completion",
        2,
        8,
    )
    response_bodies.Completion.model_validate(body)
    openai.types.Completion.model_validate(body, strict=True)


def test_a_completion_as_chunks() -> None:
    heard = streamed_bodies(complete(), said("a", "b", reason="length"))
    for chunk in heard:
        response_bodies.CompletionChunk.model_validate(chunk)
    assert [chunk["choices"][0]["text"] for chunk in heard] == ["a", "b", ""]
    assert heard[-1]["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}


def test_the_prompt_comes_first_and_the_suffix_last() -> None:
    prepared = complete(prompt=["p", "q"], echo=True, suffix="!")
    body = whole(prepared, said(" a", "b"), said("c"))
    assert [choice["text"] for choice in body["choices"]] == ["p ab!", "qc!"]
    heard = [choice for chunk in streamed_bodies(prepared, said(" a", "b"), said("c")) for choice in chunk["choices"]]
    assert [(choice["index"], choice["text"]) for choice in heard[:2]] == [(0, "p"), (1, "q")]
    for index, texts in ((0, ["p", " a", "b", "!", ""]), (1, ["q", "c", "!", ""])):
        assert [choice["text"] for choice in heard if choice["index"] == index] == texts


def test_indices_first_appear_in_their_order() -> None:
    heard = streamed_bodies(complete(n=3), said(), said("b"), said("c"))
    indices = [choice["index"] for chunk in heard for choice in chunk["choices"]]
    assert list(dict.fromkeys(indices)) == [0, 1, 2]


def test_log_probabilities_of_a_completion() -> None:
    spoken: list[Event] = [
        Delta("", (1,), (logprob("�", -1.0, data=b"\xc3", top=(logprob("a", -0.5),)),)),
        Delta("é", (2,), (logprob("�", -2.0, data=b"\xa9", top=(logprob("�", -2.0, data=b"\xa9"),)),)),
        Delta("x", (3,), (logprob("x", -math.inf),)),
        Finished("length", usage(3)),
    ]
    expected = {
        "tokens": ["bytes:\\xc3", "bytes:\\xa9", "x"],
        "token_logprobs": [-1.0, -2.0, -9999.0],
        "top_logprobs": [{"a": -0.5, "bytes:\\xc3": -1.0}, {"bytes:\\xa9": -2.0}, {"x": -9999.0}],
        "text_offset": [0, 0, 1],
    }
    prepared = complete(logprobs=1)
    assert whole(prepared, spoken)["choices"][0]["logprobs"] == expected
    assert collected(streamed_bodies(prepared, spoken)) == ("éx", expected)


def collected(chunks: Sequence[dict[str, Any]]) -> tuple[str, dict[str, list[Any]]]:
    """A streamed completion put together."""
    text = ""
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                lists[name] += values
    return text, lists


def prompt_logprobs(prepared: Prepared) -> PromptLogprobs:
    tokenizer = byte_tokenizer()
    prompt = prepared.requests[0].prompt
    tokens = [logprob(tokenizer.token_text(token), -1.0, data=tokenizer.token_bytes(token)) for token in prompt]
    return PromptLogprobs((None, *tokens[1:]))


@pytest.mark.parametrize(("prompt", "reason"), [("<|im_start|>hello é", "stop"), ("é<|im_end|> w", "length")])
def test_the_prompts_log_probabilities(prompt: str, reason: FinishReason) -> None:
    prepared = complete(prompt=prompt, echo=True, logprobs=0)
    spoken: list[Event] = [
        prompt_logprobs(prepared),
        Delta(" ok", (9,), (logprob(" ok", -3.0),)),
        Finished(reason, usage(1)),
    ]
    choice = whole(prepared, spoken)["choices"][0]
    lists = choice["logprobs"]
    tokenizer = byte_tokenizer()
    names = [tokenizer.token_text(token) for token in prepared.requests[0].prompt]
    assert choice["text"] == prompt + " ok"
    assert len(lists["tokens"]) == len(names) + 1
    assert lists["token_logprobs"] == [None, *[-1.0] * (len(names) - 1), -3.0]
    assert lists["top_logprobs"][0] is None
    for name, token, offset in zip(names, lists["tokens"], lists["text_offset"], strict=False):
        if "�" not in name:
            assert token == name
            assert choice["text"].startswith(name, offset)
    assert lists["text_offset"][-1] == len(prompt)
    assert collected(streamed_bodies(prepared, spoken)) == (choice["text"], lists)


def test_offsets_know_the_space_that_a_tokenizer_writes() -> None:
    tokenizer = piece_tokenizer()
    body = parse(CompletionBody, b'{"prompt": "hello w", "echo": true, "logprobs": 0}')
    prepared = prepare_completion(body, served(tokenizer=tokenizer), POLICY)
    prompt = prepared.requests[0].prompt
    tokens = [logprob(tokenizer.token_text(token), -1.0, data=tokenizer.token_bytes(token)) for token in prompt[1:]]
    choice = whole(prepared, [PromptLogprobs((None, *tokens)), Finished("length", usage(0))])["choices"][0]
    assert choice["logprobs"]["tokens"] == ["<s>", " hello", " w"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 5]
    assert choice["text"] == "hello w"


def test_nothing_but_the_prompt() -> None:
    prepared = complete(max_tokens=0, echo=True, n=2)
    end: list[Event] = [Finished("length", usage(0))]
    body = whole(prepared, end, end)
    assert [(choice["text"], choice["finish_reason"]) for choice in body["choices"]] == [("hello", "length")] * 2
    assert body["usage"]["completion_tokens"] == 0


def test_the_best_are_shown() -> None:
    prepared = complete(prompt=["p", "q"], n=1, best_of=3, logprobs=None)
    values = [-3.0, -1.0, -2.0, -1.0, -2.0, -2.0]
    spoken: list[list[Event]] = [
        [Delta(str(place), (1,), (logprob("x", value),)), Finished("stop", usage(2))]
        for place, value in enumerate(values)
    ]
    body = whole(prepared, *spoken)
    assert [(choice["index"], choice["text"], choice["logprobs"]) for choice in body["choices"]] == [
        (0, "1", None),
        (1, "3", None),
    ]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (2, 12)


# Failures


def listened(streams: Sequence[AsyncStream], prepared: Prepared) -> tuple[list[OutputChunk], AnswerError]:
    """The chunks of an answer that fails, and the error that ends it."""

    async def listen() -> tuple[list[OutputChunk], AnswerError]:
        chunks: list[OutputChunk] = []
        try:
            async for chunk in answer(prepared).events(streams):
                chunks.append(chunk)
        except AnswerError as error:
            return chunks, error
        raise AssertionError("the answer did not fail")

    return asyncio.run(listen())


def test_an_error_ends_a_stream() -> None:
    failed: list[Event] = [Delta("a", (1,), ()), Failed(BROKEN, usage(1))]
    chunks, ended = listened(Script(failed).streams, chat())
    assert [chunk.text for chunk in chunks] == ["", "a"]
    assert ended.error is BROKEN
    chunks, ended = listened(Script([Failed(BROKEN, usage(0))]).streams, chat())
    assert (chunks, ended.error) == ([], BROKEN)


def test_one_choices_failure_is_the_requests() -> None:
    script = Script([Delta("a", (1,), ())], [Delta("b", (1,), ()), Failed(BROKEN, usage(1))], [])
    assert listened(script.streams, chat(n=3))[1].error is BROKEN
    assert sorted(script.cancelled) == [0, 2]


def test_what_there_was_of_a_failed_answer() -> None:
    script = Script([Delta("a", (1,), ())], said("done"), [Delta("b", (1,), ())])
    prepared = chat(n=3)

    async def ask() -> None:
        waiting = asyncio.create_task(answer(prepared).whole(script.streams))
        await asyncio.sleep(0.01)
        script.streams[2].put(Failed(BROKEN, usage(1)))
        await waiting

    with pytest.raises(AnswerError) as raised:
        asyncio.run(ask())
    assert raised.value.error is BROKEN
    assert script.cancelled == [0]
    choices: Any = raised.value.partial["choices"]
    assert [(choice["message"]["content"], choice["finish_reason"]) for choice in choices] == [
        ("a", "error"),
        ("done", "stop"),
        ("b", "error"),
    ]
    sums: Any = raised.value.partial["usage"]
    assert sums["completion_tokens"] == 4  # two of the choice that is complete


def test_an_answer_that_another_cancelled_is_an_error() -> None:
    cancelled: list[Event] = [Delta("a", (1,), ()), Finished("cancelled", usage(1))]
    with pytest.raises(AnswerError) as raised:
        whole(chat(), cancelled)
    error = raised.value.error
    assert isinstance(error, EngineError)
    assert error.code == "request_cancelled"
    assert listened(Script(cancelled).streams, chat())[1].error.message == "the request was cancelled"


@pytest.mark.parametrize("num_choices", [1, 3])
def test_who_stops_listening_cancels(num_choices: int) -> None:
    script = Script(*([Delta("a", (1,), ())] for _ in range(num_choices)))

    async def listen() -> None:
        events = answer(chat(n=num_choices)).events(script.streams)
        await anext(events)
        await events.aclose()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(listen())
    assert sorted(script.cancelled) == list(range(num_choices))


@pytest.mark.parametrize("num_choices", [1, 3])
def test_who_stops_waiting_cancels(num_choices: int) -> None:
    script = Script(*([Delta("a", (1,), ())] for _ in range(num_choices)))

    async def wait() -> None:
        waiting = asyncio.create_task(answer(chat(n=num_choices)).whole(script.streams))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(wait())
    assert sorted(script.cancelled) == list(range(num_choices))


def test_a_slow_reader_does_not_make_events_pile_up() -> None:
    """They stay in their streams, which know what to do about it."""
    choices = [[Delta("a", (1,), ())] * 100 for _ in range(2)]
    script = Script(*choices)

    async def read_one() -> list[int]:
        events = answer(chat(n=2)).events(script.streams)
        await anext(events)
        await asyncio.sleep(0.01)
        left = []
        for stream in script.streams:
            stream.put(Finished("stop", usage(1)))
            left.append(len([event async for event in stream]))
        await events.aclose()
        return left

    assert min(asyncio.run(read_one())) > 90


def test_a_defect_of_a_stream_is_not_swallowed() -> None:
    class Defect(AsyncStream):
        async def __anext__(self) -> Event:
            raise ZeroDivisionError

    streams = [Defect(lambda: None), AsyncStream(lambda: None)]
    with pytest.raises(ZeroDivisionError):
        asyncio.run(answer(chat(n=2)).whole(streams))


# Submitting, ids, embeddings


class Engine:
    """Takes so many requests and no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.cancelled = 0

    def submit(self, request: Request, *, adapters: Mapping[str, float] | None = None) -> AsyncStream:
        assert adapters == {"a": 1.0}
        if not self.room:
            raise QueueFullError(0)
        self.room -= 1
        return AsyncStream(self.cancel)

    def cancel(self) -> None:
        self.cancelled += 1


def test_all_requests_are_submitted_or_none() -> None:
    requests = chat(n=3).requests
    engine: Any = Engine(3)
    assert len(submit(engine, requests, {"a": 1.0})) == 3
    assert engine.cancelled == 0
    engine = Engine(2)
    with pytest.raises(QueueFullError):
        submit(engine, requests, {"a": 1.0})
    assert engine.cancelled == 2


def test_ids() -> None:
    assert len({answer_id(chat()) for _ in range(20)}) == 20
    assert answer_id(chat()).startswith("chatcmpl-")
    assert answer_id(complete()).startswith("cmpl-")


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_embeddings(encoding_format: str) -> None:
    data = {"input": ["hello", "hi"], "encoding_format": encoding_format}
    prepared = prepare_embeddings(parse(EmbeddingBody, json.dumps(data).encode()), served(), POLICY)
    values = [(0.6, 0.8, 0.0, 0.0), (0.0, 0.0, -1.0, 0.0)]
    choices: list[list[Event]] = [[Embedding(value), Finished("stop", usage(0))] for value in values]
    script = Script(*choices)
    answer = asyncio.run(embeddings(prepared, script.streams, model_name="org/tiny"))
    body: Any = answer.body()
    response_bodies.EmbeddingList.model_validate(body)
    got = [entry["embedding"] for entry in body["data"]]
    if encoding_format == "base64":
        got = [list(struct.unpack("<4f", base64.b64decode(one))) for one in got]
    assert [entry["index"] for entry in body["data"]] == [0, 1]
    assert got == [pytest.approx(list(value)) for value in values]
    tokens = sum(len(request.prompt) for request in prepared.requests)
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


@pytest.mark.parametrize("end", [Failed(BROKEN, usage(0)), Finished("cancelled", usage(0))])
def test_an_embedding_that_fails(end: Event) -> None:
    prepared = prepare_embeddings(parse(EmbeddingBody, b'{"input": ["a", "b"]}'), served(), POLICY)
    script = Script([end], [])
    with pytest.raises(EngineError):
        asyncio.run(embeddings(prepared, script.streams, model_name="m"))
    assert script.cancelled == [1]


def test_no_tensors_here() -> None:
    names = (
        "schemas.response_bodies",
        "schemas.request_bodies",
        "schemas.parameter_table",
        "serving.chat_messages",
        "serving.prepare",
        "serving.answers.respond",
    )
    imports = ", ".join(f"mistralrs.api.{name}" for name in names)
    code = f"import sys, {imports}; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'jinja2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
