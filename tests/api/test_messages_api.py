"""The Messages API: blocks become messages, chunks become events, and both make the same answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistralrs.api.schemas.output_chunk import OutputChunk, ToolCallDelta
from mistralrs.api.schemas.request_bodies import ChatCompletionBody, parse
from mistralrs.api.schemas.translated.messages_bodies import CountTokensBody, MessagesAnswer, MessagesBody
from mistralrs.api.serving.grammars.grammar_choice import has_new_grammar
from mistralrs.api.serving.other_apis import translated_chat
from mistralrs.api.serving.other_apis.messages_api import (
    PreparedMessage,
    count_tokens,
    message_with_grammar,
    prepare_message,
)
from mistralrs.api.serving.other_apis.messages_events import MessageEvents
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import prepare_chat
from mistralrs.errors import RequestError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.text.response.shipped_templates import shipped_template
from tests.api.served import CHATML, POLICY, served
from tests.api.translated import Said, answers, spelled

USER = {"role": "user", "content": "hi"}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "3"}
TOOL = {"name": "f", "description": "adds", "input_schema": {"type": "object"}}
WHOLE = "{% for m in messages %}{{ m | tojson }}{% endfor %}"


def prepare(
    messages: Any = (USER,), *, template: str = CHATML, policy: Policy = POLICY, thinks: bool = False, **fields: Any
) -> PreparedMessage:
    given = {"messages": list(messages), "max_tokens": 8, "seed": 5, **fields}
    body = parse(MessagesBody, json.dumps(given).encode())
    responses = shipped_template("think") if thinks else None
    return prepare_message(body, replace(served(template, max_len=3000), responses=responses), policy)


def prompt(messages: Any = (USER,), *, template: str = CHATML, **fields: Any) -> str:
    return spelled(prepare(messages, template=template, **fields).prepared)


def translated(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> dict[str, Any]:
    """Returns the fields of the chat that a body becomes."""
    chats: list[ChatCompletionBody] = []

    def plain(chat: ChatCompletionBody, *others: Any) -> Any:
        chats.append(chat)
        return prepare_chat(parse(ChatCompletionBody, b'{"messages": "hi"}'), *others)

    monkeypatch.setattr(translated_chat, "prepare_chat", plain)
    prepare(**fields)
    return chats[0].model_dump(exclude_unset=True, exclude_none=True, by_alias=True)


def refused(messages: Any = (USER,), **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        prepare(messages, **fields)
    return raised.value


# Prompts


def test_the_system_comes_first() -> None:
    assert prompt() == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    whole = prompt(system="be short")
    assert whole == "<|im_start|>system\nbe short<|im_end|>\n" + prompt()
    assert prompt(system=[{"type": "text", "text": "be short", "cache_control": {"type": "ephemeral"}}]) == whole


def test_blocks_become_messages() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    asked = {"role": "assistant", "content": [thought, {"type": "text", "text": "let me see"}, USE]}
    told = {"role": "user", "content": [RESULT, {**RESULT, "tool_use_id": "c2"}, {"type": "text", "text": "and?"}]}
    shown = prompt([USER, asked, told], template=WHOLE)
    decoder, messages, place = json.JSONDecoder(), [], 0
    while place < len(shown):
        message, place = decoder.raw_decode(shown, place)
        messages.append(message)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert messages == [
        USER,
        {"role": "assistant", "content": "let me see", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "tool", "content": "3", "tool_call_id": "c2"},
        {"role": "user", "content": "and?"},
    ]


def test_a_turn_of_the_assistant_is_continued() -> None:
    assert prompt([USER, {"role": "assistant", "content": "Sure,"}]).endswith("<|im_start|>assistant\nSure,")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image", "source": {}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [USE]}, "messages[1].content[0]"),
        ({"role": "assistant", "content": [RESULT]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}, "messages[1].content[0].name"),
        ({"role": "user", "content": [{"type": "tool_result"}]}, "messages[1].content[0].tool_use_id"),
        (
            {"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]},
            "messages[1].content[0].content[0]",
        ),
        ({"role": "tool", "content": "x"}, "messages[1].role"),
    ],
)
def test_other_blocks_are_refused_by_name(message: dict[str, Any], param: str) -> None:
    error = refused([USER, message])
    assert error.param == param
    assert param in error.message


# Other fields


def test_sampling_reaches_the_request() -> None:
    asked = prepare(temperature=0.5, top_p=0.25, top_k=7, stop_sequences=["x", "y"])
    sampling = asked.prepared.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 7)
    assert (sampling.max_tokens, sampling.stop) == (8, ("x", "y"))


def test_max_tokens_is_required() -> None:
    with pytest.raises(RequestError, match="max_tokens is required"):
        parse(MessagesBody, json.dumps({"messages": [USER]}).encode())


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}, None),
    ],
)
def test_tools_have_the_chats_shape(
    monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any], expected: Any, parallel: bool | None
) -> None:
    chat = translated(monkeypatch, tools=[TOOL], tool_choice=choice)
    function = {"name": "f", "description": "adds", "parameters": {"type": "object"}}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert (chat["tool_choice"], chat.get("parallel_tool_calls")) == (expected, parallel)


def test_thinking_and_formats_have_the_chats_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    chat = translated(
        monkeypatch,
        thinks=True,
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "high", "format": form},
        chat_template_kwargs={"a": 1},
    )
    assert chat["chat_template_kwargs"] == {"a": 1, "enable_thinking": True}
    assert (chat["thinking_token_budget"], chat["reasoning_effort"]) == (2000, "high")
    schema = {"name": "output", "schema": {"type": "object"}, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": schema}
    off = translated(monkeypatch, thinking={"type": "disabled"})
    assert off["chat_template_kwargs"] == {"enable_thinking": False}
    assert "chat_template_kwargs" not in translated(monkeypatch, thinking={"type": "adaptive"})


def test_a_budget_of_thinking_holds_where_the_model_thinks() -> None:
    """Clients send one to every model: another one names it as ignored."""
    given = {"type": "enabled", "budget_tokens": 2000}
    thinking = prepare(thinks=True, thinking=given).prepared
    assert thinking.requests[0].thinking is not None
    assert thinking.requests[0].thinking.tokens == 2000
    assert "thinking.budget_tokens" not in thinking.ignored
    plain = prepare(thinking=given).prepared
    assert plain.requests[0].thinking is None
    assert "thinking.budget_tokens" in plain.ignored
    assert refused(policy=replace(POLICY, strict=True), thinking=given).code == "unsupported_parameter"


def test_a_format_is_a_grammar_that_is_checked_apart() -> None:
    form = {"format": {"type": "json_schema", "schema": {"const": 1}}}
    asked = prepare(output_config=form)
    assert asked.prepared.requests[0].grammar == GrammarText("json_schema", '{"const": 1}')
    assert has_new_grammar(message_with_grammar(asked.body), served())
    assert not has_new_grammar(message_with_grammar(ASKED.body), served())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "output_config.format.schema/not",
        ),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ],
)
def test_it_refuses_by_the_names_of_its_own_fields(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert param.partition("/")[0] in error.message


def test_it_names_as_ignored_what_changes_nothing() -> None:
    blocks = [{"type": "text", "text": "hi", "cache_control": {}}]
    thoughts = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "redacted_thinking", "data": "x"}]
    asked = prepare(
        [{"role": "user", "content": blocks}, {"role": "assistant", "content": thoughts}, USER], made_up=1,
        metadata={"user_id": "u"}, thinking={"type": "enabled"}, cache_control={"type": "ephemeral"},
        context_management={"edits": []},
    )  # fmt: skip
    assert set(asked.prepared.ignored) == {
        "context_management", "metadata", "made_up", "cache_control", "messages.cache_control", "messages.thinking",
        "messages.redacted_thinking", "thinking",
    }  # fmt: skip
    failed = prepare([{"role": "user", "content": [{**RESULT, "is_error": True}]}])
    assert "messages.is_error" in failed.prepared.ignored
    assert "metadata" in refused(policy=Policy("org/tiny", strict=True), metadata={}).message


def test_the_tokens_of_a_prompt_are_counted() -> None:
    body = parse(CountTokensBody, json.dumps({"messages": [USER], "system": "be short"}).encode())
    counted = count_tokens(body, served(), POLICY)
    assert counted.num_tokens == len(prepare(system="be short").prepared.requests[0].prompt)
    given = json.dumps({"messages": [{"role": "user", "content": "a" * 5000}]}).encode()
    cut = count_tokens(parse(CountTokensBody, given), served(), Policy("org/tiny", truncate=True))
    assert cut.prepared.truncated_tokens > 0
    assert cut.num_tokens > len(cut.prepared.requests[0].prompt)


# Answers


ASKED = prepare(stop_sequences=["END"])


def events_of(asked: PreparedMessage, chunks: Sequence[OutputChunk]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    builder = MessageEvents(asked, id="msg_1", created=1780000000, model_name="org/tiny")
    made = [*builder.opening()]
    for chunk in chunks:
        made += builder.on_chunk(chunk)
    made += builder.closing()
    return json.loads(json.dumps(made)), json.loads(json.dumps(builder.body()))


def read(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the message that a client makes of events: that of the first, with all deltas, in their order."""
    message: dict[str, Any] = {}
    inputs: dict[int, str] = {}
    for event in events:
        match event["type"]:
            case "message_start":
                message = json.loads(json.dumps(event["message"]))
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(dict(event["content_block"]))
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                assert event["index"] == len(message["content"]) - 1
                if delta["type"] == "input_json_delta":
                    inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
                    continue
                [(name, value)] = [(name, value) for name, value in delta.items() if name != "type"]
                block[name] += value
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    for place, text in inputs.items():
        message["content"][place]["input"] = json.loads(text)
    return message


@settings(deadline=None)
@given(answers())
def test_streamed_is_whole(drawn: tuple[list[Said], list[OutputChunk]]) -> None:
    parts, chunks = drawn
    events, body = events_of(ASKED, chunks)
    MessagesAnswer.model_validate(body)
    assert read(events) == body
    builder = MessageEvents(ASKED, id="msg_1", created=0, model_name="org/tiny")
    for chunk in chunks:
        list(builder.on_chunk(chunk))
    assert builder.body() == body
    kinds = {"reasoning": "thinking", "text": "text", "call": "tool_use"}
    said = parts or [Said("text", "")]
    assert [block["type"] for block in body["content"]] == [kinds[part.kind] for part in said]
    for block, part in zip(body["content"], said, strict=True):
        if part.kind == "call":
            assert (block["name"], block["input"]) == (part.name, json.loads(part.text))
        else:
            assert block["thinking" if part.kind == "reasoning" else "text"] == part.text
    assert body["usage"] == {
        "input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 5
    }  # fmt: skip


def test_the_events_of_a_text() -> None:
    events, _ = events_of(ASKED, [OutputChunk(0, "Hello"), OutputChunk(0, finish_reason="stop")])
    assert [event["type"] for event in events] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    started = events[0]["message"]
    assert (started["content"], started["stop_reason"]) == ([], None)
    assert started["usage"]["input_tokens"] == len(ASKED.prepared.requests[0].prompt)


@pytest.mark.parametrize(
    ("last", "tokens", "expected"),
    [
        (OutputChunk(0, finish_reason="stop"), 3, ("end_turn", None)),
        (OutputChunk(0, finish_reason="stop", stop_string="END"), 3, ("stop_sequence", "END")),
        (OutputChunk(0, finish_reason="stop", stop_string="of the server"), 3, ("end_turn", None)),
        (OutputChunk(0, finish_reason="length"), 8, ("max_tokens", None)),
        (OutputChunk(0, finish_reason="length"), 3, ("model_context_window_exceeded", None)),
        (OutputChunk(0, finish_reason="tool_calls"), 3, ("tool_use", None)),
    ],
)
def test_the_reason_of_the_end(last: OutputChunk, tokens: int, expected: tuple[str, str | None]) -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 0}}
    events, body = events_of(ASKED, [OutputChunk(0, "x"), last, OutputChunk(None, usage=usage)])
    assert (body["stop_reason"], body["stop_sequence"]) == expected
    assert events[-2]["delta"] == {"stop_reason": expected[0], "stop_sequence": expected[1]}


@given(st.integers(0, 40))
def test_a_call_that_was_cut_has_the_whole_part_of_its_input(end: int) -> None:
    text = '{"a": [1, {"b": "c"}], "d": true}'[:end]
    call = [
        OutputChunk(0, tool_calls=(ToolCallDelta(0, id="c1", name="f"),)),
        OutputChunk(0, tool_calls=(ToolCallDelta(0, text),)),
        OutputChunk(0, finish_reason="length"),
    ]
    _, body = events_of(ASKED, call)
    [block] = body["content"]
    assert set(block["input"]) <= {"a", "d"}
    if text.endswith("}}"):
        assert block["input"] == json.loads(text)


@pytest.mark.parametrize("arguments", ["", "[1]", "no JSON", '{"a": 1e999}', '{"a": NaN}', "[" * 5000])
def test_arguments_that_are_no_object_are_none(arguments: str) -> None:
    call = ToolCallDelta(0, arguments, id="c1", name="f")
    _, body = events_of(ASKED, [OutputChunk(0, tool_calls=(call,)), OutputChunk(0, finish_reason="tool_calls")])
    assert body["content"][0]["input"] == {}
