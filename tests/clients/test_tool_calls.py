"""Tools with clients that nobody here wrote: what they send for a function, and what they make of its calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

openai = pytest.importorskip("openai", reason="openai is not installed; make clients installs it")

from tests.api.tooling import HERMES  # noqa: E402
from tests.clients.conftest import HEADERS, KEY  # noqa: E402
from tests.serving import RunningServer  # noqa: E402

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Bern, in C?"}]
LIMITS: dict[str, Any] = {"temperature": 0, "max_tokens": 200}


class Weather(BaseModel):
    """Looks up the weather of a city."""

    city: Literal["Bern", "Rome"]
    unit: Literal["C", "F"]


@pytest.fixture(scope="module")
def tool_server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves the default model with a chat template that shows tools."""
    template = tmp_path_factory.mktemp("template") / "hermes.jinja"
    template.write_text(HERMES)
    environment = {"MISTRALRS_DEFAULT_MODEL": str(default_model)}
    with RunningServer("--api-key", KEY, "--chat-template", str(template), environment=environment) as process:
        yield process
        assert process.until_quiet(20, headers=HEADERS)


@pytest.fixture
def client(tool_server: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=tool_server.base_url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_openai_parses_the_arguments_of_a_pydantic_tool(client: Any) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    asked = {"model": "default", "messages": MESSAGES, "tools": tools, "tool_choice": "required", **LIMITS}
    [choice] = client.chat.completions.parse(**asked, parallel_tool_calls=False).choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    with client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        [streamed] = stream.get_final_completion().choices
    [again] = streamed.message.tool_calls
    assert again.function.parsed_arguments == call.function.parsed_arguments
    assert [event.parsed_arguments for event in done] == [call.function.parsed_arguments]


def test_a_result_goes_back_to_the_model(client: Any) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    asked = {"model": "default", "tools": tools, **LIMITS}
    first = client.chat.completions.create(messages=MESSAGES, tool_choice="required", **asked).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in first.tool_calls]
    raw = client.chat.completions.with_raw_response.create(messages=[*MESSAGES, first, *results], **asked)
    assert raw.headers.get("x-mistralrs-ignored") is None
    assert raw.parse().choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_langchain_binds_tools(tool_server: RunningServer) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="langchain is not installed; see make clients")
    chat = langchain_openai.ChatOpenAI(
        base_url=tool_server.base_url, api_key=KEY, model="default", temperature=0, max_retries=0, max_tokens=200
    )
    bound = chat.bind_tools([Weather], tool_choice="required", strict=True)
    [call] = bound.invoke("weather in Bern?").tool_calls[:1]
    assert call["name"] == "Weather"
    assert Weather.model_validate(call["args"])
    whole = None
    for chunk in bound.stream("weather in Bern?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.tool_calls[0]["args"] == call["args"]
    found = chat.with_structured_output(Weather, method="function_calling").invoke("weather in Bern?")
    assert isinstance(found, Weather)
    assert json.loads(found.model_dump_json())["city"] in ("Bern", "Rome")
