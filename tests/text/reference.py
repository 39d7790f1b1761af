"""`transformers` as the reference for rendering chat templates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from mistralrs.errors import RequestError
from mistralrs.text.chat_template import ChatTemplate

Render = Callable[[str, list[dict[str, str]], bool], str]


def load_reference() -> Render:
    """Returns the text that `transformers` renders; raises its errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils.chat_template_utils import render_jinja_template

    def render(source: str, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        rendered: tuple[list[str], Any] = render_jinja_template(
            conversations=[messages],
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
        )
        return rendered[0][0]

    return render


def check_equal(source: str, messages: list[dict[str, str]], reference: Render) -> int:
    """Compares the prompts with and without a generation prompt; returns how often the template accepted."""
    template = ChatTemplate(source, bos="<s>", eos="</s>", unk="<unk>")
    accepted = 0
    for add in (True, False):
        try:
            expected, refusal = reference(source, messages, add), None
        except Exception as error:
            expected, refusal = "", str(error)
        if refusal is None:
            assert template.render(messages, add_generation_prompt=add) == expected
            accepted += 1
        else:
            with pytest.raises(RequestError) as caught:
                template.render(messages, add_generation_prompt=add)
            assert refusal in caught.value.message
    return accepted
