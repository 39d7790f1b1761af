"""Requests of Python callers: the original's argument order, and the body that a client would have sent."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest

from mistralrs import ChatCompletionRequest, CompletionRequest, Message, RequestError, Role
from mistralrs.api.schemas import request_bodies

CHAT_ORDER = (
    "messages model logprobs n_choices logit_bias top_logprobs max_tokens presence_penalty frequency_penalty stop_seqs "
    "temperature top_p top_k stream grammar grammar_type"
)
COMPLETION_ORDER = (
    "prompt model best_of echo_prompt presence_penalty frequency_penalty logit_bias max_tokens n_choices stop_seqs "
    "temperature top_p suffix top_k grammar grammar_type"
)


def sent(kind: type[request_bodies.BodyType], **fields: Any) -> request_bodies.BodyType:
    """Returns the server's reading of a client's body."""
    return request_bodies.parse(kind, json.dumps(fields).encode())


def content(body: request_bodies.SamplingBody) -> dict[str, Any]:
    return body.model_dump(exclude_none=True)


@pytest.mark.parametrize(
    ("kind", "order"), [(ChatCompletionRequest, CHAT_ORDER), (CompletionRequest, COMPLETION_ORDER)]
)
def test_the_order_of_the_original(kind: type, order: str) -> None:
    parameters = inspect.signature(kind).parameters
    by_position = [name for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert " ".join(by_position) == order
    required = [name for name, each in parameters.items() if each.default is each.empty and name != "fields"]
    assert required == [order.split()[0]]


def test_a_chat_is_the_body_of_the_server() -> None:
    request = ChatCompletionRequest(
        [Message(Role.System, "Be brief."), {"role": "user", "content": "Hi!"}],
        "mistral", True, 2, {5: -1.5}, 3, 16, 0.5, 0.25, ["a", "b"], 0.7, 0.9, 40, True, seed=1, min_p=0.1,
    )  # fmt: skip
    body = sent(
        request_bodies.ChatCompletionBody,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}],
        model="mistral",
        logprobs=True,
        n=2,
        logit_bias={"5": -1.5},
        top_logprobs=3,
        max_tokens=16,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        stop=["a", "b"],
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        stream=True,
        seed=1,
        min_p=0.1,
    )
    assert content(request.body) == content(body)


def test_a_completion_is_the_body_of_the_server() -> None:
    request = CompletionRequest(
        "Once", "mistral", 3, True, 0.5, 0.25, {"5": 1}, 16, 2, "a", 0.7, 0.9, " end", 40, logprobs=2, stream=False
    )
    body = sent(
        request_bodies.CompletionBody,
        prompt="Once",
        model="mistral",
        best_of=3,
        echo=True,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={"5": 1},
        max_tokens=16,
        n=2,
        stop="a",
        temperature=0.7,
        top_p=0.9,
        suffix=" end",
        top_k=40,
        logprobs=2,
        stream=False,
    )
    assert content(request.body) == content(body)


def test_what_is_left_out_asks_for_nothing() -> None:
    asked = {"n": 1, "stream": False, "logprobs": False}
    body = content(ChatCompletionRequest("Hi!").body)
    assert body == asked | {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]}
    assert content(CompletionRequest([1, 2]).body) == {"prompt": [1, 2], "n": 1, "echo": False}
    assert content(CompletionRequest(("a", "b")).body)["prompt"] == ["a", "b"]


def test_messages() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Message | dict[str, Any]] = [
        Message(Role.User, [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], name="me"),
        Message(Role.Assistant, None, tool_calls=[call]),
        Message(Role.Tool, "1", tool_call_id="1"),
        Message("developer", "x"),
        {"role": Role.User, "content": "y", "mood": "good"},
    ]
    read = ChatCompletionRequest(tuple(messages)).body.messages
    assert [message.role for message in read] == ["user", "assistant", "tool", "developer", "user"]
    assert [part.text for part in read[0].content or ()] == ["a", "b"]
    assert (read[0].name, read[1].tool_calls, read[2].tool_call_id) == ("me", [call], "1")
    assert read[4].model_extra == {"mood": "good"}
    assert [role.value for role in Role] == ["system", "user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"n_choices": 0}, "n_choices", "n_choices must be greater than or equal to 1"),
        ({"stop_seqs": [""]}, "stop_seqs", "stop_seqs must be a string of 1 to"),
        ({"temperature": "1"}, "temperature", "temperature must be a valid number"),
        ({"temperature": float("nan")}, "temperature", "temperature must be a finite number"),
        ({"max_tokens": True}, "max_tokens", "max_tokens must be a valid integer"),
        ({"messages": 3}, "messages", "messages must be"),
        ({"messages": []}, "messages", "messages"),
        ({"messages": [3]}, "messages[0]", "messages[0] must be an object"),
        ({"messages": [Message("king", "x")]}, "messages[0].role", "messages[0].role must be 'system'"),
        ({"messages": "\ud800"}, "messages", "messages cannot be written as JSON"),
        ({"metadata": object()}, "metadata", "metadata cannot be written as JSON"),
        ({"temprature": 1}, "temprature", "would be ignored: temprature"),
        ({"user": "me"}, "user", "would be ignored: user"),
        ({"tools": [{}]}, "tools[0].type", "tools[0].type is required"),
        ({"grammar": "a*", "grammar_type": "bnf"}, "grammar_type", "there is no grammar_type 'bnf'"),
        ({"grammar": 3, "grammar_type": "regex"}, "grammar.value", "grammar.value must be a text"),
        ({"grammar": "a*"}, "grammar_type", "grammar needs grammar_type"),
        ({"grammar_type": "yacc"}, "grammar", "grammar_type needs grammar"),
    ],
)
def test_refused(fields: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        ChatCompletionRequest(**({"messages": "Hi!"} | fields))
    assert refused.value.param == param
    assert said in refused.value.message
    assert isinstance(refused.value, ValueError)


def test_a_completion_is_refused_as_a_chat_is() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"grammar": "a", "grammar_type": "bison"}, "grammar_type"),
        ({"echo_prompt": 1}, "echo_prompt"),
    ]
    for fields, param in cases:
        with pytest.raises(RequestError) as refused:
            CompletionRequest("x", **fields)
        assert refused.value.param == param


@pytest.mark.parametrize(("name", "here"), [("n", "n_choices"), ("stop", "stop_seqs"), ("echo", "echo_prompt")])
def test_names_of_the_body_that_have_another_here(name: str, here: str) -> None:
    fields: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=f"{name} is called {here} here"):
        CompletionRequest("x", **fields)
