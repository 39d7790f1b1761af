"""Conversations that a template refuses are rewritten without losing text, or refused with its own message."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistralrs.errors import RequestError
from mistralrs.text.builtin_templates import builtin_template
from mistralrs.text.chat_template import ChatTemplate, encode_chat
from mistralrs.text.conversation import Message, TemplateRefusalError, render_conversation
from mistralrs.text.tokenizer import Tokenizer
from tests.text.vocabularies import FETCHED, byte_level

# As in these models' own files, except for error messages.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}"
    "{% endfor %}"
)
DEAF = "{% for m in messages if m.role != 'system' %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"

SYSTEM = {"role": "system", "content": "Be brief."}
DEVELOPER = {"role": "developer", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
MORE = {"role": "user", "content": "there"}
ANSWER = {"role": "assistant", "content": "Hello!"}
CALL = {"role": "assistant", "content": "calling", "tool_calls": [{"id": "1"}]}


def chat(source: str, messages: Sequence[Message]) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render_any(messages)


def test_gemma_gets_the_system_message_in_the_first_turn() -> None:
    assert chat(GEMMA, [SYSTEM, USER, ANSWER, MORE]) == (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nthere<end_of_turn>\n<start_of_turn>model\n"
    )


def test_mistral_gets_the_system_message_in_the_first_turn() -> None:
    assert (
        chat(MISTRAL, [SYSTEM, USER, ANSWER, MORE])
        == "<s>[INST] Be brief.\n\nHi [/INST]Hello!</s> [INST] there [/INST]"
    )


def test_llama_2_has_a_place_for_it() -> None:
    assert chat(builtin_template("llama-2"), [SYSTEM, USER]) == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"


@pytest.mark.parametrize("source", [GEMMA, MISTRAL, builtin_template("llama-2"), builtin_template("chatml")])
def test_a_developer_is_the_system(source: str) -> None:
    assert chat(source, [DEVELOPER, USER]) == chat(source, [SYSTEM, USER])


@pytest.mark.parametrize("source", [GEMMA, MISTRAL, builtin_template("llama-2")])
def test_messages_of_one_role_become_one_turn(source: str) -> None:
    joined = {"role": "user", "content": "Hi\n\nthere"}
    assert chat(source, [USER, MORE, ANSWER, ANSWER, USER]) == chat(
        source, [joined, {"role": "assistant", "content": "Hello!\n\nHello!"}, USER]
    )
    assert chat(source, [SYSTEM, USER, MORE]) == chat(source, [SYSTEM, joined])


def test_only_what_must_be_rewritten_is() -> None:
    assert "user\nHi<|im_end|>\n<|im_start|>user\nthere<|im_end|>" in chat(builtin_template("chatml"), [USER, MORE])


def test_a_later_system_message_goes_to_the_turn_that_follows_and_the_first_keeps_its_place() -> None:
    later = {"role": "system", "content": "Now in French."}
    assert chat(builtin_template("llama-2"), [SYSTEM, USER, ANSWER, later, MORE]) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Now in French.\n\nthere [/INST]"
    )


def test_a_system_message_alone_becomes_a_turn() -> None:
    assert chat(MISTRAL, [SYSTEM]) == "<s>[INST] Be brief. [/INST]"


@pytest.mark.parametrize("source", [GEMMA, MISTRAL])
def test_messages_that_no_rewriting_helps_are_refused_with_the_templates_message(source: str) -> None:
    with pytest.raises(RequestError, match="Conversation roles must alternate"):
        chat(source, [ANSWER, USER])


def test_a_role_that_the_template_does_not_know_is_refused() -> None:
    with pytest.raises(RequestError, match="Only user and assistant"):
        chat(MISTRAL, [USER, {"role": "tool", "content": "42", "tool_call_id": "1"}])


def test_a_first_answer_is_no_trouble_where_the_template_takes_it() -> None:
    assert chat(builtin_template("chatml"), [ANSWER, USER]).startswith("<|im_start|>assistant\nHello!<|im_end|>\n")


def test_a_template_that_ignores_the_system_message_gets_it_elsewhere() -> None:
    assert chat(DEAF, [SYSTEM, USER, ANSWER]) == "u:Be brief.\n\nHi;a:Hello!;"
    assert chat(DEAF, [USER]) == "u:Hi;"
    assert chat(DEAF, [{"role": "system", "content": " "}, USER]) == "u:Hi;"


def test_a_template_that_reads_the_system_message_need_not_print_it() -> None:
    switch = "{% if messages[0].content == '/quiet' %}quiet {% endif %}" + DEAF
    assert chat(switch, [{"role": "system", "content": "/quiet"}, USER]) == "quiet u:Hi;"


def test_messages_that_cannot_be_kept_are_refused() -> None:
    picky = "{% for m in messages %}{% if m.content != 'Hi' and m.role == 'user' %}{{ raise_exception('only Hi') }}"
    with pytest.raises(RequestError, match="the chat template leaves out the system message"):
        chat(picky + "{% elif m.role == 'user' %}Hi{% endif %}{% endfor %}", [SYSTEM, USER])


def test_messages_that_carry_more_than_text_are_left_alone() -> None:
    with pytest.raises(TemplateRefusalError):
        chat(MISTRAL, [USER, CALL, CALL])


def test_parts_are_joined_as_parts() -> None:
    def render(messages: Sequence[Message]) -> str:
        if len(messages) > 1:
            raise TemplateRefusalError("one at most")
        return repr(messages[0]["content"])

    parts = [{"type": "text", "text": "a"}]
    rendered = render_conversation(render, [{"role": "user", "content": parts}, USER], iter("\ue000"))
    texts = ("a", "\n\n", "Hi")
    assert rendered.text == repr([{"type": "text", "text": text} for text in texts])
    assert not rendered.system_moved
    assert render_conversation(render, [{"role": "user", "content": ""}, USER], iter("\ue000")).text == "'Hi'"


LLAMA_GUARD = (
    "{% for m in messages %}{{ m.role[0] }}:{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %};{% endfor %}"
)
PARTS_ONLY = [
    LLAMA_GUARD,
    LLAMA_GUARD.replace("{% if p.type == 'text' %}{{ p.text }}{% endif %}", "{{ p['text'] | trim }}"),
    "{% for m in messages %}{{ m.role[0] }}:{{ (m.content | selectattr('type', 'equalto', 'text') | list)[0].text }};"
    "{% endfor %}",
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content[0].text }};{% endfor %}",
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content[0]['text'].strip() }};{% endfor %}",
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content[0]['text'] if m.role == 'user' else m.content | map("
    "attribute='text') | join }};{% endfor %}",
]


@pytest.mark.parametrize("source", PARTS_ONLY)
def test_a_template_that_knows_parts_only_gets_them(source: str) -> None:
    # texts that the template contains, and that contain each other
    talk = [SYSTEM, USER, ANSWER, {"role": "user", "content": "e"}, {"role": "tool", "content": "content"}]
    assert chat(source, talk) == "s:Be brief.;u:Hi;a:Hello!;u:e;t:content;"
    mixed = [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]
    assert chat(source, mixed) == "s:Be brief.;u:Hi;a:Hello!;"
    assert chat(source, [USER, {**CALL, "content": ""}, MORE]) == "u:Hi;a:;u:there;"


def test_a_template_that_reads_both_forms_gets_what_was_sent() -> None:
    both = "{% for m in messages %}{{ m.content if m.content is string else 'P' ~ m.content[0].text }};{% endfor %}"
    assert chat(both, [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]) == "Be brief.;PHi;"


def test_a_template_that_knows_parts_only_may_refuse_too() -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LLAMA_GUARD
    assert chat(picky, [SYSTEM, USER, ANSWER]) == "u:Be brief.\n\nHi;a:Hello!;"


@pytest.mark.parametrize(
    ("source", "talk", "role"),
    [
        ("Hi {{ messages | length }}", [USER], "user"),
        ("{{ messages[-1].content }}", [USER, ANSWER, MORE], "user"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", [USER, ANSWER, MORE], "assistant"),
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}",
         [USER, {**CALL, "content": ""}, {"role": "tool", "content": "42"}], "tool"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.image }}{% endfor %}{% endfor %}", [USER], "user"),
        (LLAMA_GUARD, [{"role": "user", "content": [{"type": "texts", "text": "Hi"}]}], "user"),
        # a list as Python writes it is not what a template for texts means
        ("{{ messages[0].content if messages[0].content is not string }}", [USER], "user"),
    ],
)  # fmt: skip
def test_a_template_that_leaves_out_a_message_is_refused(source: str, talk: list[Message], role: str) -> None:
    with pytest.raises(RequestError, match=f"leaves out a message of the role '{role}'") as caught:
        chat(source, talk)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("shown", "content"),
    [
        ("m.content.split('</think>')[-1] | trim", "<think>hm</think>\n\nfine"),
        ("m.content.split('</think>')[-1] | trim", "<think>hm</think>"),
        ("m.content.split('</think>')[-1] | trim", "<think>hm"),
        ("m.content | trim | upper", "long enough that no template has it by chance "),
        ("m.content | tojson(ensure_ascii=true)", 'wö "1"\n'),
        ("m.content | replace('H', 'J')", "Hello"),
        ("m.content[:2]", "Hello"),
        ("m.content | length", "Hello"),
        ("'yes' if m.content == 'Hello' else 'no'", "Hello"),
        ("m.content.split('\n') | join('|')", "a\nb"),
        ("'' if m.tool_calls else m.content", "I will call"),
    ],
)
def test_a_template_may_change_text_on_purpose(shown: str, content: str) -> None:
    source = "{% for m in messages %}{{ " + shown + " if m.role == 'assistant' else m.content }};{% endfor %}"
    answer = {"role": "assistant", "content": content, **({"tool_calls": [{}]} if "tool_calls" in shown else {})}
    talk = [USER, answer, MORE]
    assert chat(source, talk) == ChatTemplate(source, bos="<s>", eos="</s>").render(talk)


def test_every_template_that_llama_cpp_ships_shows_all_text() -> None:
    paths = sorted(FETCHED.glob("*.jinja"))
    if not paths:
        pytest.skip("the templates are not here; to get them: make fixtures")
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfine"}
    for path in paths:
        template = ChatTemplate(path.read_text(encoding="utf-8"), bos="<s>", eos="</s>")
        for talk in ([USER], [SYSTEM, USER, ANSWER, MORE], [USER, thought, MORE]):
            if not any(name in path.name for name in ("plus-tool_use", "Hermes", "firefunction")):  # which need tools
                assert "fine" in template.render_any(talk) or thought not in talk


def test_a_failure_is_not_a_refusal() -> None:
    with pytest.raises(RequestError, match="the chat template failed on the messages"):
        chat("{{ messages[0].content.nothing.there }}", [SYSTEM, USER])


def test_the_user_is_warned_once(caplog: pytest.LogCaptureFixture) -> None:
    template = ChatTemplate(GEMMA, bos="<s>", eos="</s>")
    template.render_any([USER])
    assert not caplog.records
    for _ in range(3):
        template.render_any([SYSTEM, USER])
    assert [(record.levelno, "no place for a system message" in record.message) for record in caplog.records] == [
        (logging.WARNING, True)
    ]


def test_the_given_messages_stay_as_they_are() -> None:
    given: list[dict[str, Any]] = [dict(DEVELOPER), dict(USER), dict(MORE)]
    chat(GEMMA, given)
    assert given == [DEVELOPER, USER, MORE]


def test_a_rewritten_conversation_gives_no_control_tokens_either() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level())
    template = ChatTemplate(MISTRAL, bos="", eos="<|im_end|>")
    ids = encode_chat(
        template, tokenizer, [{"role": "system", "content": "<|im_"}, {"role": "user", "content": "end|>"}]
    )
    assert tokenizer.decode(ids) == "[INST] <|im_\n\nend|> [/INST]"
    ids = encode_chat(template, tokenizer, [SYSTEM, {"role": "user", "content": "<|im_end|>"}, ANSWER])
    assert [token for token in ids if not tokenizer.token_bytes(token)] == [2]


ROLES = st.sampled_from(["system", "developer", "user", "assistant"])


@given(roles=st.lists(ROLES, min_size=1, max_size=7), source=st.sampled_from([GEMMA, MISTRAL, DEAF]))
def test_no_text_is_lost_and_the_order_stays(roles: list[str], source: str) -> None:
    messages = [{"role": role, "content": f"<{position}>"} for position, role in enumerate(roles)]
    try:
        text = chat(source, messages)
    except RequestError:
        assert roles[0] == "assistant"
        return
    places = [text.find(message["content"]) for message in messages]
    assert min(places) >= 0
    assert places == sorted(places)
