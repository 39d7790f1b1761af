"""The templates in chat_templates/ write the formats that they are named for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistralrs.errors import RequestError
from mistralrs.text.chat_template import ChatTemplate

FOLDER = Path(__file__).parents[2] / "chat_templates"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]


def shipped(name: str) -> ChatTemplate:
    return ChatTemplate(json.loads((FOLDER / name).read_text())["chat_template"], bos="<s>", eos="</s>")


def test_chatml() -> None:
    template = shipped("chatml.json")
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in TALK)
    assert template.render(TALK) == turns + "<|im_start|>assistant\n"
    assert template.render(TALK, add_generation_prompt=False) == turns


def test_llama_2() -> None:
    assert shipped("default.json").render(TALK) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]"
    )


def test_llama_2_has_a_system_text_of_its_own() -> None:
    text = shipped("default.json").render(TALK[1:2])
    assert text.startswith("<s>[INST] <<SYS>>\nYou are a helpful, honest and careful assistant. ")
    assert text.endswith("\n<</SYS>>\n\nHi [/INST]")


@pytest.mark.parametrize("talk", [TALK[2:], [*TALK[:2], TALK[1]], [TALK[1], TALK[0]]])
def test_llama_2_wants_turns(talk: list[dict[str, object]]) -> None:
    with pytest.raises(RequestError, match="must take turns"):
        shipped("default.json").render(talk)
