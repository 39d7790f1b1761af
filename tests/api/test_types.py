"""Bodies: what clients send is read, and what is wrong is said with the path of the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.api.schemas.request_bodies import (
    ApplyTemplateBody,
    Body,
    ChatCompletionBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
    parse,
    validation_error,
)
from mistralrs.errors import RequestError

BODIES: tuple[type[Body], ...] = (
    ChatCompletionBody,
    CompletionBody,
    EmbeddingBody,
    TokenizeBody,
    DetokenizeBody,
    ApplyTemplateBody,
)
HUGE = "9" * 400


def chat(text: str) -> ChatCompletionBody:
    """A body with a message and ``text`` as its other fields."""
    return parse(ChatCompletionBody, ('{"messages": "hi"' + (", " if text else "") + text + "}").encode())


def refusal(kind: type[Body], data: str | bytes) -> RequestError:
    with pytest.raises(RequestError) as raised:
        parse(kind, data if isinstance(data, bytes) else data.encode())
    return raised.value


def test_a_string_is_one_message_and_a_text_is_one_part() -> None:
    [message] = chat("").messages
    assert message.role == "user"
    assert message.content is not None
    assert [(part.type, part.text) for part in message.content] == [("text", "hi")]
    [message] = parse(ChatCompletionBody, b'{"messages": [{"role": "assistant", "content": null}]}').messages
    assert message.content is None


def test_null_is_not_there() -> None:
    names = set(ChatCompletionBody.model_fields) - {"messages"}
    body = chat(", ".join(f'"{name}": null' for name in sorted(names)))
    assert {name for name in names if getattr(body, name) is not None} == set()


def test_unknown_fields_are_kept() -> None:
    assert chat('"best_effort": [1]').model_extra == {"best_effort": [1]}


def test_other_names() -> None:
    assert chat('"repeat_penalty": 1.5').repetition_penalty == 1.5
    assert chat('"typ_p": 0.5').typical_p == 0.5


@pytest.mark.parametrize(
    "prompt", ["", "text", ["a", ""], [1, 2], [[1], [2, 3]], ["x"] * 2048], ids=lambda prompt: str(prompt)[:20]
)
def test_prompts(prompt: object) -> None:
    assert parse(CompletionBody, json.dumps({"prompt": prompt}).encode()).prompt == prompt
    assert parse(EmbeddingBody, json.dumps({"input": prompt}).encode()).input == prompt


@pytest.mark.parametrize(
    "prompt", [[], [[]], [1, "a"], [-1], [1.0], [True], 5, None, {}, [["a"]], ["x"] * 2049], ids=lambda p: str(p)[:20]
)
def test_what_is_no_prompt(prompt: object) -> None:
    error = refusal(CompletionBody, json.dumps({"prompt": prompt}))
    assert error.param == "prompt"
    assert error.message.startswith("prompt must be a string, a list of token ids, or a list of")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ('"temperature": -0.1', "temperature", "greater than or equal to 0"),
        ('"temperature": "1"', "temperature", "a valid number"),
        ('"temperature": true', "temperature", "a valid number"),
        ('"temperature": 1e999', "temperature", "finite"),
        ('"temperature": NaN', "temperature", "finite"),
        ('"temperature": -Infinity', "temperature", "finite"),
        (f'"temperature": {HUGE}', "temperature", "finite"),
        (f'"max_tokens": {HUGE}', "max_tokens", "less than or equal to"),
        (f'"seed": {HUGE}', "seed", "less than or equal to"),
        ('"max_tokens": 0', "max_tokens", "at least 1, or -1 for no limit"),
        ('"max_tokens": -3', "max_tokens", "greater than or equal to -2"),
        ('"max_tokens": 5.0', "max_tokens", "a valid integer"),
        ('"max_completion_tokens": "5"', "max_completion_tokens", "a valid integer"),
        ('"top_p": -0.1', "top_p", "greater than or equal to 0"),
        ('"top_p": 1.01', "top_p", "less than or equal to 1"),
        ('"top_k": -2', "top_k", "greater than or equal to -1"),
        ('"min_p": 2', "min_p", "less than or equal to 1"),
        ('"repeat_penalty": 0', "repeat_penalty", "greater than or equal to 0.01"),
        ('"typ_p": []', "typ_p", "a valid number"),
        ('"xtc_probability": -1', "xtc_probability", "greater than or equal to 0"),
        ('"dry_base": 0.5', "dry_base", "greater than or equal to 1"),
        ('"dry_sequence_breakers": [""]', "dry_sequence_breakers[0]", "at least 1 character"),
        ('"n": 0', "n", "greater than or equal to 1"),
        ('"n": 129', "n", "less than or equal to 128"),
        ('"top_logprobs": 21', "top_logprobs", "less than or equal to 20"),
        ('"logprobs": 3', "logprobs", "a valid boolean"),
        ('"stream": "true"', "stream", "a valid boolean"),
        ('"stream_options": {"include_usage": 1}', "stream_options.include_usage", "a valid boolean"),
        ('"stop": [""]', "stop", "a string of 1 to 1024 characters, or a list of at most 64 of these"),
        ('"stop": ["a", 1]', "stop", "a string of"),
        ('"stop_token_ids": [-1]', "stop_token_ids[0]", "greater than or equal to 0"),
        ('"logit_bias": {"5": "x"}', "logit_bias.5", "a valid number"),
        ('"logit_bias": [1]', "logit_bias", "an object"),
        ('"samplers": {}', "samplers", "a list of names, or names between ;"),
        ('"chat_template_kwargs": []', "chat_template_kwargs", "an object"),
        ('"model": 5', "model", "a valid string"),
    ],
)
def test_ranges_and_types(fields: str, param: str, words: str) -> None:
    with pytest.raises(RequestError) as raised:
        chat(fields)
    assert raised.value.param == param
    assert words in raised.value.message
    assert raised.value.message.startswith(param)
    assert raised.value.code == "invalid_value"


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ("[]", "messages", "at least 1 item"),
        ("5", "messages", "must be a text, or an array of messages"),
        ('["hi"]', "messages[0]", "must be an object"),
        ('[{"content": "x"}]', "messages[0].role", "is required"),
        ('[{"role": "bot", "content": "x"}]', "messages[0].role", "'system'"),
        (
            '[{"role": "user", "content": "x"}, {"role": "user", "content": 5}]',
            "messages[1].content",
            "an array of parts",
        ),
        ('[{"role": "user", "content": [{"text": "x"}]}]', "messages[0].content[0].type", "is required"),
        ('[{"role": "user", "content": [{"type": "text", "text": 5}]}]', "messages[0].content[0].text", "valid string"),
        ('[{"role": "user", "content": "x", "name": 5}]', "messages[0].name", "valid string"),
    ],
)
def test_paths_into_messages(messages: str, param: str, words: str) -> None:
    for kind in (ChatCompletionBody, ApplyTemplateBody, TokenizeBody):
        error = refusal(kind, f'{{"messages": {messages}}}')
        assert error.param == param
        assert words in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"messages": "hi"} x',
        b'{"messages": "\xff"}',
        rb'{"messages": "\ud800"}',
        b'{"messages": "hi", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"messages": "hi", "x": ' + b"9" * 5000 + b"}",
        b"\x00\x01",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_no_json(data: bytes) -> None:
    error = refusal(ChatCompletionBody, data)
    assert error.message.startswith("the body is not valid JSON: ")
    assert error.param is None


@pytest.mark.parametrize("data", ["[]", "5", "null", '"hi"'])
def test_what_is_no_object(data: str) -> None:
    assert refusal(ChatCompletionBody, data).message == "the body must be an object"


def test_the_number_of_messages_is_bounded() -> None:
    message = {"role": "user", "content": ""}
    assert len(parse(ChatCompletionBody, json.dumps({"messages": [message] * 10_000}).encode()).messages) == 10_000
    assert refusal(ChatCompletionBody, json.dumps({"messages": [message] * 10_001})).param == "messages"


def test_names_that_a_client_made_up_are_quoted_and_cut() -> None:
    error = refusal(ChatCompletionBody, json.dumps({"messages": "a", "logit_bias": {"x\r\ny" * 100: "z"}}))
    assert error.param is not None
    assert len(error.param) < 100
    assert "\n" not in error.param


def test_errors_of_a_framework_are_read_too() -> None:
    error = validation_error([{"loc": ("n",), "type": "int_type", "msg": "Input should be a valid integer"}])
    assert (error.message, error.param) == ("n must be a valid integer", "n")


def test_every_body_describes_itself() -> None:
    for kind in BODIES:
        schema = kind.model_json_schema()
        assert schema["type"] == "object"
        json.dumps(schema, allow_nan=False)
    messages = ChatCompletionBody.model_json_schema()["properties"]["messages"]
    assert {"type": "string"} in messages["anyOf"]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def outcome(kind: type[Body], data: bytes) -> Body | str:
    """A body, or why there is none."""
    try:
        return parse(kind, data)
    except RequestError as error:
        return error.message


@given(data=st.data(), kind=st.sampled_from(BODIES))
def test_any_json_is_a_body_or_a_request_error(data: st.DataObject, kind: type[Body]) -> None:
    names = st.sampled_from(sorted(kind.model_fields)) | st.text(max_size=5)
    text = json.dumps(data.draw(st.dictionaries(names, JSON, max_size=4) | JSON))
    assert outcome(kind, text.encode())


@given(data=st.binary(max_size=40))
def test_any_bytes_are_a_body_or_a_request_error(data: bytes) -> None:
    assert outcome(DetokenizeBody, data)
