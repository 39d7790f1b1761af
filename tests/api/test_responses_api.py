"""The Responses API: items become messages, chunks become events, and both make the same answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from mistralrs.api.schemas.output_chunk import OutputChunk, ToolCallDelta
from mistralrs.api.schemas.request_bodies import ChatCompletionBody, parse
from mistralrs.api.schemas.translated.responses_bodies import ResponsesAnswer, ResponsesBody
from mistralrs.api.serving.grammars.grammar_choice import has_new_grammar
from mistralrs.api.serving.other_apis import translated_chat
from mistralrs.api.serving.other_apis.responses_api import PreparedResponse, prepare_response, response_with_grammar
from mistralrs.api.serving.other_apis.responses_events import ResponseEvents
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import prepare_chat
from mistralrs.errors import ContextLengthError, RequestError
from mistralrs.grammar.grammar_text import GrammarText
from tests.api.served import CHATML, MAX_LEN, POLICY, served
from tests.api.translated import Said, answers, spelled

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "3"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
ANSWER = {
    "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": "three", "annotations": [], "logprobs": []}],
}  # fmt: skip
TOOL = {"type": "function", "name": "f", "description": "adds", "parameters": {"type": "object"}, "strict": True}
WHOLE = "{% for m in messages %}{{ m | tojson }}{% endfor %}"


def prepare(given: Any, *, template: str = CHATML, policy: Policy = POLICY, **fields: Any) -> PreparedResponse:
    body = parse(ResponsesBody, json.dumps({"input": given, "seed": 5, **fields}).encode())
    return prepare_response(body, served(template, max_len=3000), policy)


def prompt(given: Any, *, template: str = CHATML, **fields: Any) -> str:
    return spelled(prepare(given, template=template, **fields).prepared)


def translated(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> dict[str, Any]:
    """Returns the fields of the chat that a body becomes."""
    chats: list[ChatCompletionBody] = []

    def plain(chat: ChatCompletionBody, *others: Any) -> Any:
        chats.append(chat)
        return prepare_chat(parse(ChatCompletionBody, b'{"messages": "hi"}'), *others)

    monkeypatch.setattr(translated_chat, "prepare_chat", plain)
    prepare(USER["content"], **fields)
    return chats[0].model_dump(exclude_unset=True, exclude_none=True, by_alias=True)


def refused(given: Any = "hi", **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        prepare(given, **fields)
    return raised.value


# Input


def test_a_text_is_a_users_message_after_the_instructions() -> None:
    assert prompt("hi") == prompt([USER]) == prompt([{"type": "message", **USER}])
    assert prompt("hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt("hi", instructions="be short").startswith("<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user")


def test_parts_are_texts() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert prompt([{"role": "user", "content": parts}]) == prompt("a\nb")


def test_items_of_one_turn_are_one_message() -> None:
    shown = prompt([USER, THOUGHT, ANSWER, CALL, {**CALL, "call_id": "c2"}, OUTPUT, USER], template=WHOLE)
    decoder, messages, place = json.JSONDecoder(), [], 0
    while place < len(shown):
        message, place = decoder.raw_decode(shown, place)
        messages.append(message)
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": {"a": 1}}} for id in ("c1", "c2")]
    assert messages == [
        USER,
        {"role": "assistant", "content": "three", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        USER,
    ]


def test_answers_in_a_row_stay_apart() -> None:
    said = "<|im_start|>assistant\nthree<|im_end|>\n"
    assert said * 2 in prompt([USER, ANSWER, ANSWER])
    assert said * 2 in prompt([USER, ANSWER, THOUGHT, ANSWER])


def test_a_thought_alone_is_an_empty_message() -> None:
    assert "<|im_start|>assistant\n<|im_end|>" in prompt([USER, THOUGHT, USER])


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[1]"),
        ({"type": "computer_call_output", "call_id": "x"}, "input[1]"),
        ({"content": "x"}, "input[1].role"),
        ({"role": "user"}, "input[1].content"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0].text"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[1].call_id"),
        ({"type": "function_call_output", "output": "x"}, "input[1].call_id"),
        ({"type": "function_call_output", "call_id": "x"}, "input[1].output"),
    ],
)
def test_other_items_are_refused_by_name(item: dict[str, Any], param: str) -> None:
    error = refused([USER, item])
    assert error.param == param
    assert param in error.message


def test_a_prompt_that_is_too_long_is_cut_where_the_body_asks_for_it() -> None:
    body = parse(ResponsesBody, json.dumps({"input": "a" * 2 * MAX_LEN}).encode())
    with pytest.raises(ContextLengthError) as raised:
        prepare_response(body, served(), POLICY)
    assert raised.value.param == "input"
    auto = body.model_copy(update={"truncation": "auto"})
    asked = prepare_response(auto, served(), POLICY)
    assert asked.prepared.truncated_tokens > 0
    disabled = body.model_copy(update={"truncation": "disabled"})
    with pytest.raises(ContextLengthError):
        prepare_response(disabled, served(), Policy("org/tiny", truncate=True))


# Other fields


def test_sampling_reaches_the_request() -> None:
    [request] = prepare("hi", temperature=0.5, top_p=0.25, top_k=7, max_output_tokens=9, stop="x").prepared.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 7)
    assert (sampling.max_tokens, sampling.stop, sampling.seed, sampling.logprobs) == (9, ("x",), 5, None)


def test_log_probabilities_need_include() -> None:
    include = ["message.output_text.logprobs"]
    assert prepare("hi", include=include).prepared.logprobs == 0
    assert prepare("hi", include=include, top_logprobs=3).prepared.logprobs == 3
    assert refused(top_logprobs=3).param == "top_logprobs"


def test_tools_and_formats_have_the_chats_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    chat = translated(
        monkeypatch, tools=[TOOL, {**TOOL, "name": "g"}], tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False, text={"format": schema, "verbosity": "low"}, reasoning={"effort": "low"},
    )  # fmt: skip
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert chat["tools"][0] == {"type": "function", "function": function}
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert chat["parallel_tool_calls"] is False
    inner = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert chat["response_format"] == {"type": "json_schema", "json_schema": inner}
    assert (chat["verbosity"], chat["reasoning_effort"]) == ("low", "low")


def test_a_format_is_a_grammar_that_is_checked_apart() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    asked = prepare("hi", text=form)
    assert asked.prepared.requests[0].grammar == GrammarText("json_schema", json.dumps(schema))
    assert has_new_grammar(response_with_grammar(asked.body), served())
    assert not has_new_grammar(response_with_grammar(prepare("hi").body), served())


def test_allowed_tools_have_the_chats_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    chat = translated(monkeypatch, tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    named = {"type": "function", "function": {"name": "g"}}
    assert len(chat["tools"]) == 2
    assert chat["tool_choice"] == {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}


def test_a_choice_without_tools_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tool_choice" not in translated(monkeypatch, tools=[], tool_choice="auto")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "tools": 5}}, "tool_choice.tools"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
            "text.format.schema/not",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_it_refuses_by_the_names_of_its_own_fields(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert param.partition("/")[0] in error.message


def test_it_names_as_ignored_what_changes_nothing() -> None:
    asked = prepare(
        [USER, THOUGHT, ANSWER, USER], store=True, user="u", metadata={"a": "b"}, made_up=1,
        include=["reasoning.encrypted_content"], reasoning={"summary": "auto"}, text={"format": {"type": "text"}},
    )  # fmt: skip
    assert set(asked.prepared.ignored) == {
        "user", "metadata", "made_up", "store", "reasoning.summary", "include.reasoning.encrypted_content",
        "input.reasoning",
    }  # fmt: skip
    assert prepare("hi", store=False, background=False, stream=True).prepared.ignored == ()
    strict = Policy("org/tiny", strict=True)
    assert "store" in refused(policy=strict, store=True).message


# Answers


def events_of(asked: PreparedResponse, chunks: Sequence[OutputChunk]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    builder = ResponseEvents(asked, id="resp_1", created=1780000000, model_name="org/tiny")
    made = [*builder.opening()]
    for chunk in chunks:
        made += builder.on_chunk(chunk)
    made += builder.closing()
    return json.loads(json.dumps(made)), json.loads(json.dumps(builder.body()))


def whole(asked: PreparedResponse, chunks: Sequence[OutputChunk]) -> dict[str, Any]:
    builder = ResponseEvents(asked, id="resp_1", created=1780000000, model_name="org/tiny")
    for chunk in chunks:
        list(builder.on_chunk(chunk))
    return builder.body()


def without_ids(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "output": [{**item, "id": None} for item in body["output"]]}


@settings(deadline=None)
@given(answers())
def test_streamed_is_whole(drawn: tuple[list[Said], list[OutputChunk]]) -> None:
    parts, chunks = drawn
    asked = ASKED
    events, body = events_of(asked, chunks)
    assert without_ids(whole(asked, chunks)) == without_ids(body)
    ResponsesAnswer.model_validate(body)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    state: Any = ResponseStreamState(input_tools=[], text_format=openai.omit)
    for event in events:
        state.handle_event(construct_type_unchecked(type_=ResponseStreamEvent, value=event))  # type: ignore[arg-type]
    assert events[-1]["response"] == body
    read = Response.model_validate(body)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == body["output"]
    if body["status"] == "completed":
        assert state._completed_response.output_text == read.output_text
    said = [part for part in parts if part.kind != "text" or part.text] or [Said("text", "")]
    assert [item["type"] for item in body["output"]] == [KINDS[part.kind] for part in said]
    for item, part in zip(body["output"], said, strict=True):
        shown = item["arguments"] if part.kind == "call" else item["content"][0]["text"]
        assert shown == part.text
        deltas = [e["delta"] for e in events if e["type"].endswith(".delta") and e["item_id"] == item["id"]]
        assert "".join(deltas) == part.text


KINDS = {"reasoning": "reasoning", "text": "message", "call": "function_call"}
ASKED = prepare("hi")


def test_the_events_of_a_text() -> None:
    chunks = [OutputChunk(0, "", role="assistant"), OutputChunk(0, "Hello"), OutputChunk(0, finish_reason="stop")]
    events, body = events_of(ASKED, chunks)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["output"] == []
    assert events[2]["item"]["content"] == []
    assert body["status"] == "completed"


def token(text: str) -> dict[str, Any]:
    return {"token": text, "logprob": -1.0, "bytes": [], "top_logprobs": []}


def test_log_probabilities_are_those_of_texts() -> None:
    chunks = [
        OutputChunk(0, reasoning="hm", logprobs={"content": [token("hm")]}),
        OutputChunk(0, "", logprobs={"content": [token("</think>")]}),
        OutputChunk(0, "a", logprobs={"content": [token("a")]}),
        OutputChunk(0, "", logprobs={"content": [token("<tool_call>")]}),
        OutputChunk(0, tool_calls=(ToolCallDelta(0, "{}", id="c", name="f"),), logprobs={"content": [token("{}")]}),
        OutputChunk(0, "b", logprobs={"content": [token("b")]}),
        OutputChunk(0, finish_reason="tool_calls"),
    ]
    _, body = events_of(ASKED, chunks)
    shown = [item["content"][0]["logprobs"] for item in body["output"] if item["type"] == "message"]
    assert [[each["token"] for each in logprobs] for logprobs in shown] == [["a"], ["b"]]


def test_log_probabilities_come_with_the_text() -> None:
    chunks = [
        OutputChunk(0, "", logprobs={"content": [token("a")]}),
        OutputChunk(0, "ab", logprobs={"content": [token("b")]}),
        OutputChunk(0, "", logprobs={"content": [token("end")]}),
        OutputChunk(0, finish_reason="stop"),
    ]
    events, body = events_of(ASKED, chunks)
    [delta] = [event for event in events if event["type"].endswith("text.delta")]
    assert [each["token"] for each in delta["logprobs"]] == ["a", "b"]
    assert [each["token"] for each in body["output"][0]["content"][0]["logprobs"]] == ["a", "b", "end"]


def test_an_answer_that_was_cut_is_incomplete() -> None:
    events, body = events_of(ASKED, [OutputChunk(0, "Hel"), OutputChunk(0, finish_reason="length")])
    assert events[-1]["type"] == "response.incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


def test_an_answer_that_failed_says_so_and_keeps_its_part() -> None:
    builder = ResponseEvents(ASKED, id="resp_1", created=1, model_name="org/tiny")
    assert [*builder.opening(), *builder.on_chunk(OutputChunk(0, "Hel"))]
    *_, last = builder.failed({"code": "internal_error", "message": "the model failed", "type": "x"})
    assert last["type"] == "response.failed"
    body = ResponsesAnswer.model_validate(last["response"])
    assert body.error is not None
    assert (body.status, body.error.message, body.output[0].status) == ("failed", "the model failed", "incomplete")


def test_an_answer_repeats_the_settings_that_were_used() -> None:
    asked = prepare("hi", instructions="be short", temperature=0.5, max_output_tokens=4, tools=[])
    _, body = events_of(asked, [OutputChunk(0, finish_reason="stop")])
    assert (body["instructions"], body["temperature"], body["max_output_tokens"]) == ("be short", 0.5, 4)
    assert (body["store"], body["tools"], body["tool_choice"], body["truncation"]) == (False, [], "auto", "disabled")
