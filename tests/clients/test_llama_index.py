"""`llama-index-llms-openai-like`, set up as the guide says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest

pytest.importorskip(
    "llama_index.llms.openai_like", reason="llama-index-llms-openai-like is not installed; make clients installs it"
)

import openai
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import ANSWER, HEADERS, KEY, QUESTION
from tests.serving import RunningServer

MESSAGES = [ChatMessage(role="user", content=QUESTION)]
PROMPT = "The capital of France is"


@pytest.fixture
def like(server: RunningServer, model: str) -> Iterator[Any]:
    """Makes a client with these changes, whose connections are closed in the end."""
    with openai.DefaultHttpxClient() as http:

        def make(**changes: Any) -> Any:
            settings = {
                "api_key": KEY,
                "is_chat_model": True,
                "context_window": 8192,
                "temperature": 0.0,
                "max_retries": 0,
                "timeout": 60.0,
                "http_client": http,
                **changes,
            }
            return OpenAILike(model=model, api_base=server.base_url, **settings)

        yield make


def test_chat(like: Any) -> None:
    answer = like().chat(MESSAGES)
    assert (answer.message.role.value, answer.message.content) == ("assistant", ANSWER)
    assert answer.raw.usage.completion_tokens == 8
    assert answer.raw.choices[0].finish_reason == "stop"


def test_stream(like: Any) -> None:
    pieces = list(like().stream_chat(MESSAGES))
    assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content == ANSWER
    counted = list(like().stream_chat(MESSAGES, stream_options={"include_usage": True}))
    assert counted[-1].raw.usage.completion_tokens == 8


def test_text_completion(like: Any) -> None:
    plain = like(is_chat_model=False, max_tokens=5)
    answer = plain.complete(PROMPT)
    assert " Paris" in answer.text
    *_, last = plain.stream_complete(PROMPT)
    assert last.text == answer.text


def test_length_stop_and_choices(like: Any) -> None:
    assert like(max_tokens=3).chat(MESSAGES).raw.choices[0].finish_reason == "length"
    assert like().chat(MESSAGES, stop=[" Paris"]).message.content == "The capital of France is"
    two = like(temperature=1.0, max_tokens=12).chat(MESSAGES, n=2, seed=7).raw
    alone = like(temperature=1.0, max_tokens=12).chat(MESSAGES, seed=8)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[1].message.content == alone.message.content


def test_logprobs(like: Any) -> None:
    answer = like(logprobs=True, top_logprobs=2).chat(MESSAGES)
    drawn = [candidates[0].token for candidates in answer.logprobs]
    assert "".join(drawn) == ANSWER
    assert all(len(candidates) == 2 for candidates in answer.logprobs)


class City(BaseModel):
    """The arguments of a tool; others may not be added to them."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Oslo"]


class Weather(City):
    """Tells the weather of a city."""

    days: int = Field(ge=1, le=9)


@pytest.fixture
def calling(like: Any, tool_server: RunningServer) -> Any:
    """Returns a client of the server that shows the model tools."""
    client = like(is_function_calling_model=True, max_tokens=400)
    client.api_base = tool_server.base_url
    return client


def test_structured_predictions(calling: Any) -> None:
    prompt = PromptTemplate("What is the weather in {city}?")
    found = calling.structured_predict(Weather, prompt, llm_kwargs={"tool_required": True}, city="Oslo")
    assert isinstance(found, Weather)
    assert isinstance(calling.as_structured_llm(Weather).chat(MESSAGES).raw, Weather)


# workflows ask pydantic for its deprecated names
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("streaming", [False, True])
def test_an_agent(calling: Any, streaming: bool) -> None:
    seen: list[str] = []

    def weather(city: str) -> str:
        """Tells the weather of a city."""
        seen.append(city)
        return "snow"

    async def run() -> str:
        async with openai.DefaultAsyncHttpxClient() as http:
            calling._async_http_client = http
            tool = FunctionTool.from_defaults(fn=weather, fn_schema=City, return_direct=True)
            agent = FunctionAgent(tools=[tool], llm=calling, initial_tool_choice="required", streaming=streaming)
            return str(await agent.run("What is the weather in Oslo?"))

    assert asyncio.run(run()) == "snow"
    assert seen
    assert set(seen) <= {"Paris", "Oslo"}


def test_errors(like: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        like().chat([ChatMessage(role="user", content="word " * 9000)])
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        like(api_key="sk-wrong").chat(MESSAGES)
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        like().chat(MESSAGES, presence_penalty=1e9)


def test_async(like: Any) -> None:
    async def run() -> tuple[str, str]:
        async with openai.DefaultAsyncHttpxClient() as http:
            client = like(async_http_client=http)
            answer = await client.achat(MESSAGES)
            pieces = [piece.delta async for piece in await client.astream_chat(MESSAGES)]
            return answer.message.content, "".join(pieces)

    assert asyncio.run(run()) == (ANSWER, ANSWER)


def test_cancel(like: Any, server: RunningServer) -> None:
    async def run() -> None:
        async with openai.DefaultAsyncHttpxClient() as http:
            client = like(max_tokens=4000, async_http_client=http)
            asking = asyncio.create_task(client.achat(MESSAGES, extra_body={"ignore_eos": True}))
            while not server.ask("GET", "/v1/requests", headers=HEADERS)[1]["data"]:
                await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(run())
    assert server.until_quiet(15, headers=HEADERS)
