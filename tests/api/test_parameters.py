"""The table of parameters: it knows every field of every body, and each is applied, refused or named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import pytest

from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.adapter_bodies import LoadAdapterBody, UnloadAdapterBody
from mistralrs.api.schemas.parameter_table import PARAMETERS, Endpoint, capabilities, ignored_header, rows, unserved
from mistralrs.api.schemas.request_bodies import (
    ApplyTemplateBody,
    Body,
    ChatCompletionBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
    parse,
)
from mistralrs.api.schemas.translated.messages_bodies import CountTokensBody, MessagesBody
from mistralrs.api.schemas.translated.responses_bodies import ResponsesBody
from mistralrs.errors import RequestError

BODIES: Mapping[Endpoint, type[Body]] = {
    "chat": ChatCompletionBody,
    "completions": CompletionBody,
    "embeddings": EmbeddingBody,
    "tokenize": TokenizeBody,
    "detokenize": DetokenizeBody,
    "apply_template": ApplyTemplateBody,
    "load_lora_adapter": LoadAdapterBody,
    "unload_lora_adapter": UnloadAdapterBody,
    "responses": ResponsesBody,
    "messages": MessagesBody,
    "count_tokens": CountTokensBody,
}
LEAST: Mapping[Endpoint, dict[str, Any]] = {
    "chat": {"messages": "hi"},
    "completions": {"prompt": "hi"},
    "embeddings": {"input": "hi"},
    "tokenize": {"prompt": "hi"},
    "detokenize": {"tokens": []},
    "apply_template": {"messages": "hi"},
    "load_lora_adapter": {"lora_name": "style", "lora_path": "style"},
    "unload_lora_adapter": {"lora_name": "style"},
    "responses": {"input": "hi"},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    "count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
}


def body(endpoint: Endpoint, **fields: object) -> Body:
    return parse(BODIES[endpoint], json.dumps({**LEAST[endpoint], **fields}).encode())


def test_every_endpoint_has_a_body() -> None:
    assert set(BODIES) == set(get_args(Endpoint))


@pytest.mark.parametrize("endpoint", BODIES)
def test_the_table_has_the_fields_of_the_body(endpoint: Endpoint) -> None:
    fields = BODIES[endpoint].model_fields
    assert set(rows(endpoint)) == set(fields)
    for name, row in rows(endpoint).items():
        alias = fields[name].validation_alias
        others = [] if alias is None else [other for other in getattr(alias, "choices", []) if other != name]
        assert list(row.aliases) == others, name
        # what is served has a type, what is not may hold anything
        assert (fields[name].annotation is Any) == (row.use != "applied"), name


def test_no_row_comes_twice_and_each_says_why() -> None:
    seen = [(endpoint, name) for row in PARAMETERS for endpoint in row.endpoints for name in (row.name, *row.aliases)]
    assert len(seen) == len(set(seen))
    for row in PARAMETERS:
        assert bool(row.why) == (row.use != "applied"), row
        assert row.use == "refused" or not row.harmless, row


@pytest.mark.parametrize("endpoint", BODIES)
def test_what_is_refused_is_refused_by_name(endpoint: Endpoint) -> None:
    for row in rows(endpoint).values():
        if row.use != "refused":
            continue
        with pytest.raises(RequestError) as raised:
            unserved(endpoint, body(endpoint, **{row.name: {"any": "thing"}}))
        assert raised.value.param == row.name
        assert raised.value.code == "unsupported_parameter"
        assert raised.value.message == f"{row.name} {row.why}"
        for harmless in (None, *row.harmless):
            assert unserved(endpoint, body(endpoint, **{row.name: harmless})) == ()


@pytest.mark.parametrize("endpoint", BODIES)
def test_what_is_ignored_is_named(endpoint: Endpoint) -> None:
    ignored = [row.name for row in rows(endpoint).values() if row.use == "ignored"]
    given = dict.fromkeys(ignored, "x")
    assert sorted(unserved(endpoint, body(endpoint, **given, made_up=0, nothing=None))) == sorted([*ignored, "made_up"])
    assert unserved(endpoint, body(endpoint, **dict.fromkeys(ignored))) == ()


def test_what_is_asked_for_in_chats_only() -> None:
    """Fields of another endpoint are unknown ones."""
    assert unserved("completions", body("completions", tools=[{}], max_completion_tokens=5)) == (
        "tools",
        "max_completion_tokens",
    )


@pytest.mark.parametrize(
    ("name", "other", "value"), [("repetition_penalty", "repeat_penalty", 1.5), ("typical_p", "typ_p", 0.5)]
)
def test_one_parameter_under_two_names(name: str, other: str, value: float) -> None:
    for endpoint in ("chat", "completions"):
        assert unserved(endpoint, body(endpoint, **{name: value})) == ()
        assert unserved(endpoint, body(endpoint, **{other: value})) == ()
        with pytest.raises(RequestError, match=f"{name} and {other} are the same parameter") as raised:
            unserved(endpoint, body(endpoint, **{name: value, other: value}))
        assert raised.value.param == other
    assert unserved("embeddings", body("embeddings", **{other: value})) == (other,)


def test_no_tools_are_no_tools() -> None:
    assert unserved("chat", body("chat", tools=[], tool_choice="none", functions=[], function_call="none")) == ()


def test_a_strict_server_names_what_it_would_ignore() -> None:
    parameter_table.refuse_ignored([])
    with pytest.raises(RequestError, match="these parameters would be ignored: user, x") as raised:
        parameter_table.refuse_ignored(["user", "x"])
    assert (raised.value.param, raised.value.code) == ("user", "unsupported_parameter")


def test_the_header_holds_whatever_names_there_are() -> None:
    assert (
        ignored_header(["user", "stream_options.x", "messages[0].name"]) == "user, stream_options.x, messages[0].name"
    )
    assert ignored_header(["a\r\nSet-Cookie: b", "ü", "x" * 500]) == f"a??Set-Cookie??b, ?, {'x' * 64}"
    many = ignored_header(f"p{i}" for i in range(1000))
    assert many.endswith("p31, and 968 more")
    assert ignored_header([]) == ""


def test_capabilities_are_the_table() -> None:
    shown: dict[str, Any] = json.loads(json.dumps(capabilities()))
    assert set(shown) == set(BODIES)
    for endpoint in BODIES:
        uses = {entry["name"]: use for use, entries in shown[endpoint].items() for entry in entries}
        assert uses == {name: row.use for name, row in rows(endpoint).items()}
    [modalities] = [entry for entry in shown["chat"]["refused"] if entry["name"] == "modalities"]
    assert modalities == {
        "name": "modalities",
        "why": "is not supported: the answer is text",
        "accepted_values": [None, ["text"]],
    }
    assert {"name": "tools"} in shown["chat"]["applied"]
    for endpoint in ("chat", "completions"):
        assert {"name": "response_format"} in shown[endpoint]["applied"]
    assert {"name": "typical_p", "aliases": ["typ_p"]} in shown["completions"]["applied"]
