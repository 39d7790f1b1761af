"""Server-sent events: the bytes that clients read, which say what the chunks' bodies say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.api.schemas.output_chunk import OutputChunk, ToolCallDelta
from mistralrs.api.schemas.request_bodies import ChatCompletionBody, CompletionBody, parse
from mistralrs.api.serving.answers.response_builder import ResponseBuilder
from mistralrs.api.serving.prepare import Prepared, prepare_chat, prepare_completion
from mistralrs.server.sse import DONE, ChunkEncoder, encode_error, frame_event
from tests.api.served import POLICY, served


def prepared(kind: str, *, include_usage: bool = False) -> Prepared:
    options = {"stream": True, "stream_options": {"include_usage": include_usage}}
    if kind == "chat":
        chat = parse(ChatCompletionBody, json.dumps({"messages": "hi", **options}).encode())
        return prepare_chat(chat, served(), POLICY)
    completion = parse(CompletionBody, json.dumps({"prompt": "hi", **options}).encode())
    return prepare_completion(completion, served(), POLICY)


def encoder(asked: Prepared) -> ChunkEncoder:
    return ChunkEncoder(asked, id="chatcmpl-1", created=1780000000, model_name="org/tiny")


CHAT = (
    '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1780000000,"model":"org/tiny",'
    '"system_fingerprint":"local","choices":['
)
TEXT = CHAT.replace("chat.completion.chunk", "text_completion")


@pytest.mark.parametrize(
    ("kind", "chunk", "expected"),
    [
        (
            "chat",
            OutputChunk(0, "", role="assistant"),
            CHAT + '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}',
        ),
        (
            "chat",
            OutputChunk(0, "Hel"),
            CHAT + '{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}',
        ),
        (
            "chat",
            OutputChunk(1, "\u2028é"),
            CHAT + '{"index":1,"delta":{"content":"\\u2028\\u00e9"},"logprobs":null,"finish_reason":null}]}',
        ),
        (
            "chat",
            OutputChunk(0, finish_reason="stop", timings={"seed": 5}),
            CHAT + '{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"timings":{"seed":5}}',
        ),
        (
            "chat",
            OutputChunk(0, "a", logprobs={"content": []}, timings={"completion_tokens": 1}),
            CHAT + '{"index":0,"delta":{"content":"a"},"logprobs":{"content":[]},"finish_reason":null}],'
            '"timings":{"completion_tokens":1}}',
        ),
        ("completion", OutputChunk(0, "a"), TEXT + '{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}'),
        (
            "completion",
            OutputChunk(2, finish_reason="length"),
            TEXT + '{"index":2,"text":"","logprobs":null,"finish_reason":"length"}]}',
        ),
    ],
)
def test_the_bytes_of_a_chunk(kind: str, chunk: OutputChunk, expected: str) -> None:
    assert frame_event(encoder(prepared(kind)).encode(chunk)) == f"data: {expected}\n\n".encode("ascii")


def test_the_bytes_of_usage() -> None:
    writer = encoder(prepared("chat", include_usage=True))
    assert (
        writer.encode(OutputChunk(None, usage={"total_tokens": 3}))
        == f'{CHAT}],"usage":{{"total_tokens":3}}}}'.encode()
    )
    assert writer.encode(OutputChunk(0, "a")).endswith(b'"finish_reason":null}],"usage":null}')


def test_the_bytes_of_an_end() -> None:
    assert DONE == b"data: [DONE]\n\n"
    error: dict[str, Any] = {"error": {"message": "é", "param": None}}
    assert frame_event(encode_error(error)) == b'data: {"error":{"message":"\\u00e9","param":null}}\n\n'


FACTS = st.none() | st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3), max_size=3)
CHUNKS = st.builds(
    OutputChunk,
    st.integers(0, 9),
    st.none() | st.text(),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    logprobs=FACTS,
    timings=FACTS,
) | st.builds(OutputChunk, st.integers(0, 9), st.text(), role=st.just("assistant"))
CALLS = st.builds(ToolCallDelta, st.integers(0, 9), st.text(), id=st.none() | st.just("a"), name=st.none() | st.text())
PARTS = st.builds(
    OutputChunk,
    st.integers(0, 9),
    st.none(),
    reasoning=st.none() | st.text(),
    tool_calls=st.lists(CALLS, max_size=2).map(tuple),
    finish_reason=st.sampled_from([None, "tool_calls"]),
    logprobs=FACTS,
)


@settings(deadline=None)  # the first example starts the templates' process
@given(kind=st.sampled_from(["chat", "completion"]), include_usage=st.booleans(), chunk=CHUNKS, usage=FACTS)
def test_an_event_says_what_the_chunks_body_says(
    kind: str, include_usage: bool, chunk: OutputChunk, usage: dict[str, object] | None
) -> None:
    """The server renders by hand what Python callers get as a body; it is one line of ASCII."""
    check(prepared(kind, include_usage=include_usage), chunk, usage)


@settings(deadline=None)
@given(legacy=st.booleans(), chunk=PARTS)
def test_an_event_says_the_same_of_calls_and_thinking(legacy: bool, chunk: OutputChunk) -> None:
    check(replace(prepared("chat"), legacy_calls=legacy), chunk, None)


def check(asked: Prepared, chunk: OutputChunk, usage: dict[str, object] | None) -> None:
    builder = ResponseBuilder(asked, id="chatcmpl-1", created=1780000000, model_name="org/tiny")
    for one in (chunk, *([OutputChunk(None, usage=usage)] if asked.include_usage else [])):
        data = encoder(asked).encode(one)
        assert data.isascii()
        assert b"\n" not in data
        assert json.loads(data) == builder.chunk_body(one)
