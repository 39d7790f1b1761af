"""The `openai` package's client of the Responses API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

openai = pytest.importorskip("openai", reason="openai is not installed; make clients installs it")

from openai import AsyncOpenAI, OpenAI  # noqa: E402

from tests.clients.conftest import ANSWER, KEY, QUESTION  # noqa: E402
from tests.serving import RunningServer  # noqa: E402


@pytest.fixture
def client(server: RunningServer) -> Iterator[Any]:
    with OpenAI(base_url=server.base_url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_create(client: Any, model: str) -> None:
    answer = client.responses.create(model=model, input=QUESTION, temperature=0, store=False)
    assert answer.output_text == ANSWER
    assert (answer.status, answer.model, answer.error) == ("completed", model, None)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.usage.output_tokens == 8  # the end of the text is one


def test_an_answer_goes_back_as_it_came(client: Any, model: str) -> None:
    first = client.responses.create(model=model, input=QUESTION, temperature=0)
    asked = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And of Spain?"}]
    second = client.responses.create(model=model, input=asked, temperature=0, max_output_tokens=40)
    chat = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": "And of Spain?"},
        ],
        temperature=0,
        max_tokens=40,
    )
    assert second.output_text == chat.choices[0].message.content


def test_stream(client: Any, model: str) -> None:
    events = list(client.responses.create(model=model, input=QUESTION, temperature=0, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ANSWER
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert len(deltas) > 1  # in pieces, of several tokens where an earlier answer proposed them


def test_stream_helper(client: Any, model: str) -> None:
    include = ["message.output_text.logprobs"]
    with client.responses.stream(model=model, input=QUESTION, temperature=0, include=include) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == ANSWER
    assert "".join(each.token for each in final.output[0].content[0].logprobs) == ANSWER


def test_parse_without_a_schema(client: Any, model: str) -> None:
    answer = client.responses.parse(model=model, input=QUESTION, temperature=0)
    assert (answer.output_text, answer.output_parsed) == (ANSWER, None)


class Capital(BaseModel):
    name: str = Field(max_length=20)
    continent: Literal["Africa", "Europe"]


def test_parse(client: Any, model: str) -> None:
    asked = {"model": model, "input": QUESTION, "text_format": Capital, "temperature": 0, "max_output_tokens": 200}
    answer = client.responses.parse(**asked)
    assert isinstance(answer.output_parsed, Capital)
    with client.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == answer.output_parsed


def test_a_schema_that_cannot_be_obeyed_is_refused(client: Any, model: str) -> None:
    class Impossible(BaseModel):
        pairs: set[int]

    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.parse(model=model, input=QUESTION, text_format=Impossible)
    assert refused.value.param == "text.format.schema/properties/pairs/uniqueItems"


def test_an_answer_that_was_cut(client: Any, model: str) -> None:
    answer = client.responses.create(model=model, input=QUESTION, temperature=0, max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert ANSWER.startswith(answer.output_text)


def test_the_async_client(server: RunningServer, model: str) -> None:
    async def ask() -> str:
        async with AsyncOpenAI(base_url=server.base_url, api_key=KEY, max_retries=0) as client:
            stream = await client.responses.create(model=model, input=QUESTION, temperature=0, stream=True)
            texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        return "".join(texts)

    assert asyncio.run(ask()) == ANSWER


def test_nothing_is_kept(client: Any, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve("resp_1")
    assert missing.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.delete("resp_1")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=model, input=QUESTION, previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
