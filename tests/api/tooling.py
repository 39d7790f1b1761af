"""A served model that calls tools: a chat template in ChatML with thoughts, and the form of its answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from mistralrs.api.schemas.request_bodies import ChatCompletionBody, parse
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.prepare import Prepared, prepare_chat
from mistralrs.engine.events import Delta, Event, Finished, FinishReason, TokenLogprob, Usage
from mistralrs.text.response.call_format import CallFormat
from mistralrs.text.response.response_template import ResponseTemplate
from mistralrs.text.tokenizer import Tokenizer
from tests.api.served import POLICY, served
from tests.text.vocabularies import CONTROL, byte_level

HERMES = (
    "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools><|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>\n{% endif %}{% if reasoning_effort == 'high' %}{{ '\n' }}{% endif %}{% endif %}"
)
"""Thoughts of earlier turns are dropped, as Qwen3 does."""
DECLARED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}
"""As SmolLM3 and Qwen write."""
FORM = CallFormat(
    call='<tool_call>{"name": "$name", "arguments": $arguments}</tool_call>',
    separator="\n",
    trigger="<tool_call>",
    think_open="<think>",
    think_close="</think>",
)
MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": CITY, **more}}


TOOLS = [tool("weather"), tool("time")]


@cache
def marking_tokenizer() -> Tokenizer:
    """Returns a byte-level tokenizer in which the marks of parts are control tokens."""
    metadata = byte_level()
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    return Tokenizer.from_gguf(byte_level(tokens=[*tokens, *MARKERS], token_type=[*kinds, *[CONTROL] * len(MARKERS)]))


def calling(
    *, template: str = HERMES, form: CallFormat | None = FORM, marks: bool = False, max_len: int = 4000
) -> ServedModel:
    """Returns a model that calls tools. ``marks``: the marks of its parts are control tokens."""
    model = served(template, tokenizer=marking_tokenizer() if marks else None, max_len=max_len)
    return replace(model, responses=ResponseTemplate.parse(DECLARED), call_format=form)


def ask(model: ServedModel | None = None, policy: Policy = POLICY, **fields: Any) -> Prepared:
    body = parse(ChatCompletionBody, json.dumps({"messages": "hi", "seed": 5, **fields}).encode())
    return prepare_chat(body, model or calling(), policy)


def call(name: str, **arguments: Any) -> str:
    """Returns a call as the model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}</tool_call>"


def said(*texts: str, reason: FinishReason = "stop", logprobs: bool = False) -> list[Event]:
    """Returns the events of an answer of one token a text, and the token that ended it."""
    tokens: Sequence[Event] = [
        Delta(text, (place,), (TokenLogprob(place, text, text.encode(), -0.5, ()),) if logprobs else ())
        for place, text in enumerate(texts)
    ]
    return [*tokens, Finished(reason, Usage(4, 0, len(texts) + 1, 0.5, 2.0, 0.5, 5))]


def split_at(text: str, cuts: Sequence[int]) -> list[str]:
    """Returns the text in pieces, cut at these places."""
    places = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places) if start < end]


def unnumbered(message: dict[str, Any], *, id: Callable[[int], str] = "call{}".format) -> dict[str, Any]:
    """Returns a message with its calls' random ids replaced by ordinals."""
    calls = message.get("tool_calls") or []
    return {**message, "tool_calls": [{**each, "id": id(place)} for place, each in enumerate(calls)]}
