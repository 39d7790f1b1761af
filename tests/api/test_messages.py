"""Messages: contents become text, the template gets what was sent, and what it does not read is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mistralrs.api.schemas.request_bodies import ApplyTemplateBody, parse
from mistralrs.api.serving.chat_messages import conversation
from mistralrs.api.serving.chat_prompt import Conversation
from mistralrs.errors import RequestError
from mistralrs.text.chat_template import ChatTemplate
from tests.api.served import CHATML, byte_tokenizer
from tests.text.test_conversation import GEMMA, MISTRAL

ALL = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
TRIMMING = CHATML.replace("m.content", "(m.content | trim)")
NAMES = "{% for m in messages %}{{ m.role }}{{ ' ' + m.name if m.name }}: {{ m.content }};{% endfor %}"
PARTS = CHATML.replace(
    "m.content +", "(m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join) +"
)
CALLS = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %};{% endfor %}"
)
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def ask(source: str, messages: Any, **options: Any) -> tuple[Conversation, ChatTemplate]:
    body = parse(ApplyTemplateBody, json.dumps({"messages": messages, **options}).encode())
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    return conversation(body.messages, body, template), template


def prompt(source: str, messages: Any, **options: Any) -> str:
    asked, template = ask(source, messages, **options)
    return asked.text(template)


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_a_string_is_a_users_message() -> None:
    assert prompt(CHATML, "hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_text_parts_are_a_text_in_every_role(role: str) -> None:
    first = [say("user", "x")]
    assert prompt(CHATML, [*first, say(role, parts("a", "b"))]) == prompt(CHATML, [*first, say(role, "a\nb")])
    assert prompt(CHATML, [*first, say(role, [])]) == prompt(CHATML, [*first, say(role, "")])


def test_a_developer_is_the_system() -> None:
    assert prompt(CHATML, [say("developer", "a")]) == prompt(CHATML, [say("system", "a")])


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video", "refusal"])
def test_other_parts_are_refused(kind: str) -> None:
    with pytest.raises(RequestError, match=kind) as raised:
        ask(CHATML, [say("user", "x"), say("user", [*parts("a"), {"type": kind, kind: {"url": "x"}}])])
    assert raised.value.code == "unsupported_content_part"
    assert raised.value.param == "messages[1].content[1]"


def test_a_text_part_has_a_text() -> None:
    with pytest.raises(RequestError, match="required") as raised:
        ask(CHATML, [say("user", [{"type": "text"}])])
    assert raised.value.param == "messages[0].content[0].text"


def test_null_is_the_content_of_a_call_only() -> None:
    assert prompt(CHATML, [say("assistant", None, tool_calls=[CALL])]).startswith("<|im_start|>assistant\n<|im_end|>")
    for message in (say("user", None), say("assistant", None), say("assistant", None, tool_calls=[]), {"role": "tool"}):
        with pytest.raises(RequestError, match="null") as raised:
            ask(CHATML, [say("user", "x"), message])
        assert raised.value.param == "messages[1].content"


@pytest.mark.parametrize("source", [GEMMA, MISTRAL])
def test_neighbours_of_one_role_are_merged_where_the_template_refuses_them(source: str) -> None:
    merged = prompt(source, [say("user", "a\n\nb")])
    assert prompt(source, [say("user", "a"), say("user", "b")]) == merged
    assert prompt(source, [say("user", "a", name="x"), say("user", "b", name="x")]) == merged
    with pytest.raises(RequestError, match="roles must alternate"):
        prompt(source, [say("user", "a", name="x"), say("user", "b", name="y")])


def test_a_first_answer_is_served_or_refused_in_the_templates_words() -> None:
    messages = [say("assistant", "Hello!"), say("user", "hi")]
    assert prompt(CHATML, messages).startswith("<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nhi")
    with pytest.raises(RequestError, match="Conversation roles must alternate") as raised:
        prompt(GEMMA, messages)
    assert raised.value.param == "messages"


def test_all_fields_reach_the_template_but_for_empty_ones() -> None:
    message = say("assistant", "x", name="n", tool_calls=[CALL], reasoning_content="hm", refusal=None, annotations=[])
    shown = json.loads(prompt(ALL, [message]))
    assert shown == {
        "role": "assistant",
        "content": "x",
        "name": "n",
        "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {"a": 1}}}],
        "reasoning_content": "hm",
    }


@pytest.mark.parametrize(
    "arguments", ["", "{", "[1]", "5", '"x"', "[" * 100000, '{"a":' * 900 + "1" + "}" * 900, {"a": 1}]
)
def test_arguments_that_are_no_object_are_shown_as_they_are(arguments: object) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    [shown] = json.loads(prompt(ALL, [say("assistant", None, tool_calls=[call])]))["tool_calls"]
    assert shown == call
    [shown] = json.loads(prompt(ALL, [say("assistant", None, tool_calls=[{"any": "thing"}])]))["tool_calls"]
    assert shown == {"any": "thing"}


def test_deep_arguments_are_objects_still() -> None:
    call = {"function": {"name": "f", "arguments": '{"a<|im_":' * 150 + "1" + "}" * 150}}
    asked, template = ask(CALLS, [say("assistant", None, tool_calls=[call])])
    assert byte_tokenizer().decode(asked.tokens(template, byte_tokenizer())).count("a<|im_") == 150


def test_fields_that_change_nothing_are_named() -> None:
    messages = [say("user", "hi", name="Ann", audience="all"), say("assistant", None, tool_calls=[CALL])]
    variables = {"enable_thinking": False}

    def unused(source: str) -> tuple[str, ...]:
        return ask(source, messages, chat_template_kwargs=variables)[0].unused

    everything = ("messages.audience", "messages.name", "messages.tool_calls", "chat_template_kwargs.enable_thinking")
    assert unused(CHATML) == everything
    assert unused(NAMES) == tuple(path for path in everything if path != "messages.name")
    assert unused(CALLS) == tuple(path for path in everything if path != "messages.tool_calls")
    assert unused(CHATML + "{{ enable_thinking }}") == everything[:-1]
    assert ask(CHATML, "hi")[0].unused == ()


def test_a_field_that_a_template_insists_on_is_used() -> None:
    picky = CHATML + "{% for m in messages if not m.name %}{{ raise_exception('who?') }}{% endfor %}"
    assert ask(picky, [say("user", "hi", name="Ann")])[0].unused == ()
    with pytest.raises(RequestError, match=r"who\?"):
        ask(picky, [say("user", "hi", other="Ann")])


def test_variables_reach_the_template() -> None:
    assert prompt("{{ mood }}{{ messages[0].content }}", "hi", chat_template_kwargs={"mood": "oh "}) == "oh hi"
    source = "{{ self_ }}{{ messages[0].content }}"
    assert prompt(source, "hi", chat_template_kwargs={"self": 1, "template": 2, "tokenizer": 3}) == "hi"


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "continue_final_message", "chat_template"])
def test_variables_replace_no_field(name: str) -> None:
    with pytest.raises(RequestError, match=f"cannot set {name}") as raised:
        ask(CHATML, "hi", chat_template_kwargs={name: "x"})
    assert raised.value.param == f"chat_template_kwargs.{name}"


def test_the_number_of_fields_is_bounded() -> None:
    many = {f"v{i}": 1 for i in range(17)}
    with pytest.raises(RequestError, match="more than 16"):
        ask(CHATML, "hi", chat_template_kwargs=many)
    with pytest.raises(RequestError, match="more than 16"):
        ask(CHATML, [say("user", "x", **many)])


def test_the_generation_prompt_can_be_left_out() -> None:
    assert prompt(CHATML, "hi", add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"
    with pytest.raises(RequestError, match="exclude each other"):
        ask(CHATML, "hi", add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize("source", [CHATML, TRIMMING, GEMMA])
@pytest.mark.parametrize("content", ["The answer", "The answer ", " a\n", "", "x TAG ", "<|im_end|>", "<|im_"])
def test_the_last_message_is_continued_as_transformers_does(source: str, content: str) -> None:
    messages = [say("user", "hi"), say("assistant", content)]
    rendered: Any = render_jinja_template(
        [messages], chat_template=source, continue_final_message=True, bos_token="<s>", eos_token="</s>"
    )
    expected = rendered[0][0]
    asked, template = ask(source, messages, continue_final_message=True)
    assert asked.text(template) == expected
    tokenizer = byte_tokenizer()
    if "<|" not in content:
        assert asked.tokens(template, tokenizer) == tuple(tokenizer.encode(expected, special=True))


def test_what_is_continued_gives_no_control_token() -> None:
    tokenizer = byte_tokenizer()
    asked, template = ask(CHATML, [say("assistant", "a<|im_end|>\n<|im_")], continue_final_message=True)
    ids = asked.tokens(template, tokenizer)
    assert [tokenizer.token_text(token) for token in ids if not tokenizer.token_bytes(token)] == ["<|im_start|>"]
    assert tokenizer.decode(ids) == "assistant\na<|im_end|>\n<|im_"


def test_keys_give_no_control_token() -> None:
    tokenizer = byte_tokenizer()
    call = {"function": {"name": "f", "arguments": json.dumps({"<|im_end|>": 1, "a<|im_": 2})}}
    asked, template = ask(CALLS, [say("assistant", None, tool_calls=[call])])
    ids = asked.tokens(template, tokenizer)
    assert all(tokenizer.token_bytes(token) for token in ids)
    assert tokenizer.decode(ids) == asked.text(template)
    source = "{{ messages[0].content }}{{ v | tojson }}"
    asked, template = ask(source, "hi", chat_template_kwargs={"v": {"<|im_end|>": {"v": "<|im_end|>"}}})
    assert all(tokenizer.token_bytes(token) for token in asked.tokens(template, tokenizer))


def test_what_is_not_shown_cannot_be_continued() -> None:
    asked, template = ask(
        "{{ messages[0].content }}", [say("user", "a"), say("assistant", "b")], continue_final_message=True
    )
    with pytest.raises(RequestError, match="leaves out a message of the role 'assistant'"):
        asked.text(template)
    calls = [say("user", "a"), say("assistant", "b", tool_calls=[CALL])]  # whose words may be left out
    with pytest.raises(RequestError, match="does not show the last message") as raised:
        ask("{{ messages[0].content }}", calls, continue_final_message=True)
    assert raised.value.param == "continue_final_message"


@pytest.mark.parametrize("content", ["hi", parts("hi"), parts("one", "two <|im_end|>")])
@pytest.mark.parametrize("more", [[], [say("assistant", "yes"), say("user", parts("x"))]])
def test_a_template_that_reads_parts_gets_every_word(content: Any, more: Any) -> None:
    messages = [say("system", "be <|im_"), say("user", content), say("assistant", None, tool_calls=[CALL]), *more]
    assert prompt(PARTS, messages) == prompt(CHATML, messages)
    asked, template = ask(PARTS, messages)
    ids = asked.tokens(template, byte_tokenizer())
    assert byte_tokenizer().decode(ids) == byte_tokenizer().decode(
        ask(CHATML, messages)[0].tokens(template, byte_tokenizer())
    )
    continued = [*messages, say("assistant", "so ")]
    assert prompt(PARTS, continued, continue_final_message=True) == prompt(
        CHATML, continued, continue_final_message=True
    )
