"""The `anthropic` package: what it sends by itself, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed; make clients installs it")

from anthropic import Anthropic, AsyncAnthropic  # noqa: E402

from tests.clients.conftest import ANSWER, KEY, QUESTION  # noqa: E402
from tests.serving import RunningServer  # noqa: E402

MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with Anthropic(base_url=server.root, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def greedy(model: str, **changes: Any) -> dict[str, Any]:
    """Returns a request for the likeliest answer; this client names no temperature by itself."""
    return {"model": model, "messages": MESSAGES, "max_tokens": 40, "extra_body": {"temperature": 0}, **changes}


def test_create(client: Any, model: str) -> None:
    answer = client.messages.create(**greedy(model))
    [block] = answer.content
    assert (block.type, block.text) == ("text", ANSWER)
    assert (answer.role, answer.model, answer.stop_reason, answer.stop_sequence) == (
        "assistant", model, "end_turn", None
    )  # fmt: skip
    assert answer.usage.output_tokens == 8  # the end of the text is one
    prompt = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert client.messages.count_tokens(model=model, messages=MESSAGES).input_tokens == prompt


def test_stream(client: Any, model: str) -> None:
    kinds = [event.type for event in client.messages.create(**greedy(model, stream=True))]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 1  # in pieces, of several tokens where an earlier answer proposed them


def test_stream_helper(client: Any, model: str) -> None:
    whole = client.messages.create(**greedy(model))
    with client.messages.stream(**greedy(model)) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text == ANSWER
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)


class Capital(BaseModel):
    name: str = Field(description="Without its country")
    continent: Literal["Africa", "Europe"]


def test_parse(client: Any, model: str) -> None:
    answer = client.messages.parse(**greedy(model, output_format=Capital, max_tokens=200))
    assert isinstance(answer.parsed_output, Capital)


def test_the_reasons_of_the_end(client: Any, model: str) -> None:
    cut = client.messages.create(**greedy(model, max_tokens=3))
    assert cut.stop_reason == "max_tokens"
    stopped = client.messages.create(**greedy(model, stop_sequences=["never", " France"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " France")
    assert stopped.content[0].text == "The capital of"


def test_a_begun_answer_is_continued(client: Any, model: str) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "The capital of France"}]
    answer = client.messages.create(**greedy(model, messages=begun))
    assert answer.content[0].text == " is Paris."


def test_the_system_has_its_say(client: Any, model: str) -> None:
    plain = client.messages.count_tokens(model=model, messages=MESSAGES).input_tokens
    blocks = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    for system in ("Be short.", blocks):
        told = client.messages.count_tokens(model=model, messages=MESSAGES, system=system)
        assert told.input_tokens != plain


def test_the_async_client(server: RunningServer, model: str) -> None:
    async def ask() -> str:
        async with (
            AsyncAnthropic(base_url=server.root, api_key=KEY, max_retries=0) as client,
            client.messages.stream(**greedy(model)) as stream,
        ):
            return "".join([text async for text in stream.text_stream])

    assert asyncio.run(ask()) == ANSWER


def test_a_key_as_a_token(server: RunningServer, model: str) -> None:
    with Anthropic(base_url=server.root, auth_token=KEY, max_retries=0) as client:
        assert client.messages.create(**greedy(model)).content[0].text == ANSWER
    with (
        Anthropic(base_url=server.root, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as refused,
    ):
        client.messages.create(**greedy(model))
    assert refused.value.body["error"]["type"] == "authentication_error"


def test_errors(client: Any, model: str) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**greedy(model, messages=[{"role": "user", "content": [image]}]))
    assert refused.value.body["error"]["message"].startswith("messages[0].content[0] is of type 'image'")
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        client.messages.create(**greedy(model, messages=[{"role": "user", "content": "word " * 10_000}]))


def test_models(client: Any, model: str) -> None:
    assert [each.id for each in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


TOOL = {
    "name": "weather",
    "description": "Tells the weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}], ids=str)
def test_tools(tool_server: RunningServer, choice: dict[str, str]) -> None:
    asked = greedy("default", tools=[TOOL], tool_choice={**choice, "disable_parallel_tool_use": True}, max_tokens=300)
    with Anthropic(base_url=tool_server.root, api_key="any", max_retries=0, timeout=60) as client:
        answer = client.messages.create(**asked)
        [use] = [block for block in answer.content if block.type == "tool_use"]
        assert (use.name, answer.stop_reason) == ("weather", "tool_use")
        assert use.input.keys() == {"city", "days"}
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        assert [block.input for block in final.content if block.type == "tool_use"] == [use.input]
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "Snow."}
        told = [*MESSAGES, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
        told_answer = client.messages.create(
            **greedy("default", messages=told, tools=[TOOL], tool_choice={"type": "none"})
        )
        assert told_answer.content[0].type == "text"
