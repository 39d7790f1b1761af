"""Requests with tools from functions and with a response model, and the values of their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, RootModel, TypeAdapter, field_validator
from typing_extensions import TypedDict

from mistralrs import ChatCompletionRequest, IncompleteAnswerError, RequestError, UsageError, tool_from
from mistralrs.api.python_api.closed_json_schema import ClosedJsonSchema
from mistralrs.api.python_api.python_answers import ChatCompletionResponse, whole_answer
from mistralrs.api.schemas import parameter_table


class City(BaseModel):
    """A city."""

    name: str
    inhabitants: int
    size: Literal["small", "large"] = "small"

    @field_validator("name")
    @classmethod
    def _has_a_letter(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("a name has letters")
        return name


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@pytest.fixture
def everything_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameter_table, "unserved", lambda endpoint, body: ())


@pytest.mark.usefixtures("everything_is_served")
def test_tools_are_functions_or_definitions() -> None:
    request = ChatCompletionRequest("x", tools=[add, tool_from(add)], tool_choice="auto")
    sent = request.body.model_dump(mode="json", by_alias=True)["tools"]
    assert sent[0] == sent[1]
    function = sent[0]["function"]
    assert (function["name"], function["description"]) == ("add", "Adds.")
    assert function["parameters"] == tool_from(add)["function"]["parameters"]
    assert ChatCompletionRequest("x").body.tools is None
    with pytest.raises(TypeError, match="a tool needs a name"):
        ChatCompletionRequest("x", tools=[lambda x: x])


def test_a_response_model_is_a_response_format() -> None:
    request = ChatCompletionRequest("x", response_model=City)
    sent: Any = request.body.model_dump(mode="json", by_alias=True)["response_format"]
    assert (sent["type"], sent["json_schema"]["name"], sent["json_schema"]["strict"]) == ("json_schema", "City", True)
    schema = sent["json_schema"]["schema"]
    jsonschema.validate({"name": "Paris", "inhabitants": 2}, schema)
    for wrong in ({"name": "Paris"}, {"name": "Paris", "inhabitants": 2, "mayor": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    listed = ChatCompletionRequest("x", response_model=list[City]).body.model_dump(mode="json", by_alias=True)[
        "response_format"
    ]
    assert listed["json_schema"]["name"] == "list"
    assert listed["json_schema"]["schema"]["type"] == "array"
    with pytest.raises(TypeError, match="say the same"):
        ChatCompletionRequest("x", response_model=City, response_format={"type": "text"})
    for kind in (BaseExceptionGroup, Callable[[], int]):
        with pytest.raises(TypeError, match="response_model has no JSON schema"):
            ChatCompletionRequest("x", response_model=kind)  # type: ignore[arg-type]


def test_objects_have_the_fields_of_their_classes() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    class Named(TypedDict):
        name: str

    class Open(BaseModel, extra="allow"):
        name: str

    class Tree(BaseModel):
        children: list[Tree]
        points: dict[str, Point]
        named: Named
        open: Open
        listed: RootModel[list[int]]

    Tree.model_rebuild()
    schema = TypeAdapter(Tree).json_schema(schema_generator=ClosedJsonSchema)
    closed = {name: each.get("additionalProperties") for name, each in schema["$defs"].items() if "properties" in each}
    assert closed == {"Point": False, "Named": False, "Open": True, "Tree": False}
    assert schema["$defs"]["Tree"]["properties"]["points"]["additionalProperties"] == {"$ref": "#/$defs/Point"}


def answer(text: str | None, *, finish_reason: str = "stop", kind: type[Any] | None = City) -> ChatCompletionResponse:
    times = {"avg_tok_per_sec": 1.5, "avg_prompt_tok_per_sec": None, "avg_compl_tok_per_sec": 2.5}
    seconds = {"total_time_sec": 2.0, "total_prompt_time_sec": 0.0, "total_completion_time_sec": 2.0}
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    body = {
        "id": "x",
        "created": 1,
        "model": "tiny",
        "system_fingerprint": "local",
        "object": "chat.completion",
        "choices": [choice],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "timings": {**times, **seconds, "seed": 1},
    }
    adapter = None if kind is None else TypeAdapter(kind)
    return whole_answer(ChatCompletionResponse, body, adapter)


def test_an_answer_has_the_value() -> None:
    made = answer('{"name": "Paris", "inhabitants": 2}')
    assert made.parsed == made.parsed_choice(0) == City(name="Paris", inhabitants=2)
    assert made.usage.avg_tok_per_sec == 1.5
    assert made.usage.avg_prompt_tok_per_sec is None
    assert answer("[1, 2]", kind=list[int]).parsed == [1, 2]


def test_what_is_no_value() -> None:
    with pytest.raises(IncompleteAnswerError, match="choice 0 was cut after 2 tokens") as cut:
        _ = answer('{"name": "Pa', finish_reason="length").parsed
    assert cut.value.hint is not None
    with pytest.raises(IncompleteAnswerError, match="choice 0 is no value of the response_model: name: Value error"):
        _ = answer('{"name": " ", "inhabitants": 2}').parsed
    with pytest.raises(IncompleteAnswerError, match="Invalid JSON"):
        _ = answer("").parsed
    with pytest.raises(UsageError, match="the request has no response_model"):
        _ = answer("{}", kind=None).parsed
    assert issubclass(IncompleteAnswerError, ValueError)
    assert not issubclass(IncompleteAnswerError, RequestError)


def test_fields_of_thinking_go_by_the_bodys_names() -> None:
    body = ChatCompletionRequest("x", thinking_token_budget=3, reasoning_effort="low").body
    assert (body.thinking_token_budget, body.reasoning_effort) == (3, "low")
    with pytest.raises(RequestError, match="thinking_token_budget"):
        ChatCompletionRequest("x", thinking_token_budget=-1)
