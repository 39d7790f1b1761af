"""`langchain-openai`, set up as the guide says."""

from __future__ import annotations

import asyncio
import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import pytest

pytest.importorskip("langchain_openai", reason="langchain-openai is not installed; make clients installs it")

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field, SecretStr

from tests.clients.conftest import ADAPTED, ANSWER, HEADERS, KEY, QUESTION
from tests.server.adapter_server import AdapterServer
from tests.serving import RunningServer


@pytest.fixture
def http() -> Iterator[Any]:
    """Connections that are closed in the end; langchain's own never are."""
    with openai.DefaultHttpxClient() as client:
        yield client


@pytest.fixture
def chat(server: RunningServer, model: str, http: Any) -> Callable[..., Any]:
    """Makes a client with these changes."""

    def make(**changes: Any) -> Any:
        settings = {"temperature": 0, "stream_usage": True, "max_retries": 0, "timeout": 60, "api_key": KEY, **changes}
        return ChatOpenAI(model=model, base_url=server.base_url, http_client=http, **settings)

    return make


def test_chat(chat: Callable[..., Any], model: str) -> None:
    answer = chat().invoke([SystemMessage("You know geography."), HumanMessage(QUESTION)])
    assert "Paris" in answer.content
    facts = answer.response_metadata
    assert (facts["finish_reason"], facts["model_name"], facts["system_fingerprint"]) == ("stop", model, "local")
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_stream(chat: Callable[..., Any]) -> None:
    chunks = list(chat().stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == ANSWER
    usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert [usage["output_tokens"] for usage in usages] == [8]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert (whole.content, whole.response_metadata["finish_reason"]) == (ANSWER, "stop")


def test_length_and_stop(chat: Callable[..., Any]) -> None:
    short = chat(max_tokens=3).invoke(QUESTION)  # sent as max_completion_tokens
    assert (short.response_metadata["finish_reason"], short.usage_metadata["output_tokens"]) == ("length", 3)
    stopped = chat().invoke(QUESTION, stop=[" Paris"])
    assert (stopped.content, stopped.response_metadata["finish_reason"]) == ("The capital of France is", "stop")


def test_logprobs(chat: Callable[..., Any]) -> None:
    answer = chat().bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
    drawn = answer.response_metadata["logprobs"]["content"]
    assert "".join(each["token"] for each in drawn) == ANSWER
    assert all(len(each["top_logprobs"]) == 2 for each in drawn)


def test_two_choices(chat: Callable[..., Any]) -> None:
    result = chat(n=2, temperature=1, seed=7, max_tokens=12).generate([[HumanMessage(QUESTION)]])
    alone = chat(temperature=1, seed=8, max_tokens=12).invoke(QUESTION)
    [choices] = result.generations
    assert len(choices) == 2
    assert choices[1].text == alone.content
    assert result.llm_output["token_usage"]["completion_tokens"] <= 24


class Place(BaseModel):
    """Where something is."""

    city: str = Field(max_length=20)
    is_capital: bool


# langchain-openai puts the parsed object into a field that openai declares as null
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("strict", [None, True])
def test_structured_output(chat: Callable[..., Any], strict: bool | None) -> None:
    told = chat(max_tokens=80).with_structured_output(Place, method="json_schema", strict=strict)
    place = told.invoke(QUESTION)
    assert isinstance(place, Place)
    assert list(told.stream(QUESTION))[-1] == place
    as_dict = chat(max_tokens=80).with_structured_output(Place.model_json_schema(), method="json_schema", strict=strict)
    assert Place.model_validate(as_dict.invoke(QUESTION)) == place


def weather(city: Literal["Paris", "Oslo"], days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """Tells the weather of a city."""
    return f"{days} days of snow in {city}"


@pytest.fixture
def tool_chat(tool_server: RunningServer, http: Any) -> Any:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 400, "max_retries": 0, "timeout": 60, "api_key": "any"}
    return ChatOpenAI(model="default", base_url=tool_server.base_url, http_client=http, **settings)


@pytest.mark.parametrize("choice", ["any", "weather"])
def test_bind_tools(tool_chat: Any, choice: str) -> None:
    function = tool(weather)
    told = tool_chat.bind_tools([function], tool_choice=choice, parallel_tool_calls=False)
    answer = told.invoke(QUESTION)
    [call] = answer.tool_calls
    assert (call["name"], call["args"].keys()) == ("weather", {"city", "days"})
    result = function.invoke(call)
    assert " days of snow in " in result.content
    streamed = functools.reduce(operator.add, told.stream(QUESTION))
    assert [each["args"] for each in streamed.tool_calls] == [call["args"]]
    assert tool_chat.invoke([HumanMessage(QUESTION), answer, result], max_tokens=30).content


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_structured_output_by_a_tool(tool_chat: Any) -> None:
    told = tool_chat.with_structured_output(Place, method="function_calling")
    place = told.invoke(QUESTION)
    assert isinstance(place, Place)
    assert list(told.stream(QUESTION))[-1] == place


def test_json_mode(chat: Callable[..., Any]) -> None:
    told = chat(max_tokens=300)
    answer = told.with_structured_output(None, method="json_mode", include_raw=True).invoke(f"As JSON: {QUESTION}")
    assert isinstance(answer["parsed"], dict) or answer["raw"].response_metadata["finish_reason"] == "length"


def test_context_overflow(chat: Callable[..., Any]) -> None:
    """langchain-openai looks for the code in the text of openai's error, which from openai 3.57 on has it apart."""
    calls = (lambda: chat().invoke("word " * 9000), lambda: list(chat().stream("word " * 9000)))
    for call in calls:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens") as overflow:
            call()
        assert isinstance(overflow.value, ContextOverflowError) or overflow.value.code == "context_length_exceeded"


def test_errors(chat: Callable[..., Any]) -> None:
    with pytest.raises(openai.AuthenticationError):
        chat(api_key="sk-wrong").invoke(QUESTION)
    with pytest.raises(openai.BadRequestError, match="top_p"):
        chat(top_p=7.0).invoke(QUESTION)
    with pytest.raises(openai.BadRequestError, match="tools"):
        chat().bind_tools([{"name": "f", "description": "x", "parameters": {}}]).invoke(QUESTION)


def test_async(chat: Callable[..., Any]) -> None:
    async def run() -> tuple[list[str], str]:
        answers = await asyncio.gather(*(chat().ainvoke(QUESTION) for _ in range(3)))
        return [each.content for each in answers], "".join([chunk.content async for chunk in chat().astream(QUESTION)])

    assert asyncio.run(run()) == ([ANSWER] * 3, ANSWER)


def test_cancel(chat: Callable[..., Any], server: RunningServer) -> None:
    stream = chat(max_tokens=4000, extra_body={"ignore_eos": True}).stream("Count.")
    assert len(list(itertools.islice(stream, 4))) == 4
    assert server.ask("GET", "/v1/requests", headers=HEADERS)[1]["data"]
    stream.close()
    assert server.until_quiet(15, headers=HEADERS)


def test_a_model_chooses_an_adapter(adapter_server: AdapterServer, adapted: dict[str, str], http: Any) -> None:
    def ask(model: str) -> Any:
        settings = {"temperature": 0, "max_tokens": ADAPTED["max_tokens"], "extra_body": {"ignore_eos": True}}
        url, key = adapter_server.base_url, SecretStr("any")
        client: Any = ChatOpenAI(
            model=model, base_url=url, api_key=key, http_client=http, max_retries=0, timeout=60, **settings
        )
        answer = client.invoke(QUESTION)
        streamed = "".join(chunk.content for chunk in client.stream(QUESTION))
        assert streamed == answer.content
        return answer

    answers = {name: ask(name) for name in adapted}
    assert {name: answer.content for name, answer in answers.items()} == adapted
    assert [answer.response_metadata["model_name"] for answer in answers.values()] == ["tiny", "a", "b"]
    with pytest.raises(openai.NotFoundError, match="known are tiny, a, b"):
        ask("c")


def test_text_completion(server: RunningServer, model: str, http: Any) -> None:
    llm: Any = OpenAI(
        model=model,
        base_url=server.base_url,
        api_key=SecretStr(KEY),
        http_client=http,
        temperature=0,
        max_tokens=5,
        max_retries=0,
    )
    text = llm.invoke("The capital of France is")
    assert " Paris" in text
    assert "".join(llm.stream("The capital of France is")) == text


def test_embeddings(server: RunningServer, model: str, http: Any) -> None:
    embeddings: Any = OpenAIEmbeddings(
        model=model,
        base_url=server.base_url,
        api_key=SecretStr(KEY),
        http_client=http,
        check_embedding_ctx_length=False,  # texts go as they are, not as ids of another tokenizer
        max_retries=0,
    )
    first, second = embeddings.embed_documents(["a cat", "a dog"])
    assert embeddings.embed_query("a cat") == first != second
