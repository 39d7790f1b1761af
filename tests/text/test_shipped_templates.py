"""The templates in chat_templates/ write the formats that they are named for, as `transformers` renders them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistralrs.errors import LoadError, RequestError
from mistralrs.text.builtin_templates import builtin_names, builtin_template
from mistralrs.text.chat_template import ChatTemplate
from tests.text.reference import Render, check_equal, load_reference

FOLDER = Path(__file__).parents[2] / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
SIX = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": " How can I help you? "},
    {"role": "user", "content": "What is 1 + 1?\n\n"},
    {"role": "assistant", "content": '2, <b>surely</b> & "always"'},
    {"role": "user", "content": "Grüße 🦙"},
    {"role": "assistant", "content": "{{ 7 * 6 }}"},
]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
WITHOUT_SYSTEM = {
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama-2": "<s>[INST] Hi [/INST] Hello! </s><s>[INST] Bye [/INST]",
    "llama-3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hi [/INST] Hello!</s>[INST] Bye [/INST]",
    "gemma": "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "phi-2": "Instruct: Hi\nOutput: Hello!\nInstruct: Bye\nOutput:",
    "zephyr": "<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
    "vicuna": f"<s>{VICUNA} USER: Hi ASSISTANT: Hello!</s>USER: Bye ASSISTANT:",
    "alpaca": f"<s>{ALPACA}\n\n### Instruction:\nHi\n\n### Response:\nHello!</s>\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
}
WITHOUT_SYSTEM["hermes"] = WITHOUT_SYSTEM["chatml"]
WITH_SYSTEM = {
    "hermes": "<|im_start|>system\nBe brief.<|im_end|>\n" + WITHOUT_SYSTEM["hermes"],
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n" + WITHOUT_SYSTEM["chatml"],
    "llama-2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]",
    "default": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>" + WITHOUT_SYSTEM["llama-3"][3:],
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello!</s>[INST] Bye [/INST]",
    "gemma": WITHOUT_SYSTEM["gemma"].replace("Hi", "Be brief.\n\nHi"),
    "phi-2": WITHOUT_SYSTEM["phi-2"].replace("Hi", "Be brief.\n\nHi"),
    "zephyr": "<|system|>\nBe brief.</s>\n" + WITHOUT_SYSTEM["zephyr"],
    "vicuna": WITHOUT_SYSTEM["vicuna"].replace(VICUNA, "Be brief."),
    "alpaca": WITHOUT_SYSTEM["alpaca"].replace(ALPACA, "Be brief."),
}
REFUSES_SYSTEM = {"mistral", "gemma", "phi-2"}
TAKES_TURNS = {"default", "llama-2", "mistral", "gemma", "vicuna"}


def shipped(name: str) -> ChatTemplate:
    return ChatTemplate(builtin_template(name), bos="<s>", eos="</s>")


@pytest.fixture(scope="module")
def reference() -> Render:
    return load_reference()


def test_all_are_here() -> None:
    assert builtin_names() == NAMES
    assert {*WITHOUT_SYSTEM, "default"} == WITH_SYSTEM.keys() == set(NAMES)
    assert json.loads((FOLDER / "gemma.json").read_text())["chat_template"] == builtin_template("gemma")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LoadError, match="no chat template named 'lama'") as caught:
        builtin_template("lama")
    assert "alpaca, chatml" in str(caught.value.hint)


@pytest.mark.parametrize("name", WITHOUT_SYSTEM)
def test_the_format_without_a_system_message(name: str) -> None:
    assert shipped(name).render(TALK) == WITHOUT_SYSTEM[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_format_with_a_system_message(name: str) -> None:
    template = shipped(name)
    assert template.render_any([SYSTEM, *TALK]) == WITH_SYSTEM[name]
    if name in REFUSES_SYSTEM:
        with pytest.raises(RequestError, match="has no system message"):
            template.render([SYSTEM, *TALK])


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_transformers(name: str, reference: Render) -> None:
    accepted = [check_equal(builtin_template(name), talk, reference) for talk in (SIX, [SYSTEM, *SIX[:5]], SIX[:1])]
    assert accepted == [2, 0 if name in REFUSES_SYSTEM else 2, 2]


@pytest.mark.parametrize("name", sorted(TAKES_TURNS))
@pytest.mark.parametrize("talk", [TALK[1:], [*TALK[:1], *TALK[:1]], [TALK[0], SYSTEM]])
def test_some_want_turns(name: str, talk: list[dict[str, object]]) -> None:
    with pytest.raises(RequestError, match="must take turns"):
        shipped(name).render(talk)


@pytest.mark.parametrize("name", sorted({*NAMES} - TAKES_TURNS))
def test_others_take_any_order(name: str) -> None:
    assert "Hello!" in shipped(name).render(TALK[1:])


@pytest.mark.parametrize("name", ["phi-2", "zephyr", "alpaca"])
def test_unknown_roles_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match="only"):
        shipped(name).render([*TALK, {"role": "tool", "content": "42"}])


def test_default_has_a_system_text_of_its_own() -> None:
    text = shipped("default").render(TALK[:1])
    assert text.startswith("<s>[INST] <<SYS>>\nYou are a helpful, honest and careful assistant. ")
    assert text.endswith("\n<</SYS>>\n\nHi [/INST]")


def test_hermes_shows_tools_calls_and_results() -> None:
    tool = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
    called = {"type": "function", "function": {"name": "time", "arguments": {"city": "Zürich"}}}
    talk = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": [called, called]},
        {"role": "tool", "content": "Noon"},
        {"role": "tool", "content": "One"},
    ]
    prompt = shipped("hermes").render([SYSTEM, *talk], tools=[tool])
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\n")
    assert prompt.count("<|im_start|>system") == 1
    assert prompt.count(json.dumps(tool)) == 1
    assert shipped("hermes").render(talk, tools=[tool]) == prompt.replace("Be brief.\n\n", "")
    line = '<tool_call>\n{"name": "time", "arguments": {"city": "Zürich"}}\n</tool_call>'
    assert prompt.endswith(
        f"<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\n{line}\n{line}<|im_end|>\n<|im_start|>user\n"
        "<tool_response>\nNoon\n</tool_response>\n<tool_response>\nOne\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
