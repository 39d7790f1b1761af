"""Rendered prompts equal those of `transformers`, for the usual formats and for every template that llama.cpp ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mistralrs.loading.gguf_file import GgufFile
from tests.text.reference import Render, check_equal, load_reference
from tests.text.vocabularies import FETCHED

SHIPPED = Path(__file__).parents[2] / "chat_templates"
ALTERNATE = "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"

TEMPLATES = {
    "chatml": json.loads((SHIPPED / "chatml.json").read_text())["chat_template"],
    "llama-2": json.loads((SHIPPED / "default.json").read_text())["chat_template"],
    "mistral": "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}" + ALTERNATE + "{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token + ' ' }}{% endif %}{% endfor %}",
    "llama-3": "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "zephyr": "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}
TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": " How can I help you? "},
    {"role": "user", "content": "What is 1 + 1?\n\n"},
    {"role": "assistant", "content": '2, <b>surely</b> & "always"'},
    {"role": "user", "content": "Grüße 🦙"},
]
SYSTEM = {"role": "system", "content": "You are helpful."}
TALKS = {
    "with system": [SYSTEM, *TURNS],
    "without system": [*TURNS, {"role": "assistant", "content": "Thanks"}],
    "one": TURNS[:1],
    "none": [],
}


@pytest.fixture(scope="module")
def reference() -> Render:
    return load_reference()


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_usual_templates_equal_transformers(name: str, talk: str, reference: Render) -> None:
    accepted = check_equal(TEMPLATES[name], TALKS[talk], reference)
    refuses_system = name in ("mistral", "gemma") and talk == "with system"
    asks_first = name == "gemma" and talk == "none"
    assert accepted == (0 if refuses_system or asks_first else 2)


@pytest.mark.parametrize("talk", TALKS)
def test_the_default_models_template_equals_transformers(default_model: Path, talk: str, reference: Render) -> None:
    with GgufFile.open(default_model) as file:
        source = file.metadata["tokenizer.chat_template"]
    assert isinstance(source, str)
    assert check_equal(source, TALKS[talk], reference) == 2


def test_every_template_that_llama_cpp_ships_equals_transformers(reference: Render) -> None:
    paths = sorted(FETCHED.glob("*.jinja"))
    if not paths:
        pytest.skip("the templates are not here; to get them: make fixtures")
    assert len(paths) > 50
    dated = [path for path in paths if "strftime_now" in path.read_text(encoding="utf-8")]
    accepted = sum(
        check_equal(path.read_text(encoding="utf-8"), TALKS[talk], reference)
        for path in paths
        if path not in dated
        for talk in ("with system", "one")
    )
    assert accepted > 150
