"""The response templates that ship with the project, and the choice among them by a chat template's markers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from mistralrs.text.builtin_templates import response_template_file
from mistralrs.text.response.response_template import ResponseTemplate


@dataclass(frozen=True, slots=True)
class _Shipped:
    """A shipped template, for chat templates that have all of some texts."""

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()


SHIPPED = (
    _Shipped("harmony", has=("<|channel|>", "<|message|>", "<|start|>")),
    _Shipped("mistral-v11", has=("[TOOL_CALLS]", "[ARGS]")),
    _Shipped("mistral-v3", has=("[TOOL_CALLS]",)),
    _Shipped("functiongemma", has=("<start_function_call>",)),
    _Shipped("qwen3-coder", has=("<function=", "<parameter=")),
    _Shipped("olmo-3", has=("<function_calls>", "<|im_start|>")),
    _Shipped("phi-4", has=("<|tool|>", "<|assistant|>")),
    _Shipped("hermes", has=("<tool_call>",), lacks=("<arg_key>",)),
    _Shipped("granite-3", has=("<|tool_call|>", "<|start_of_role|>")),
    _Shipped("llama-3", has=("<|start_header_id|>", '"parameters"')),
    _Shipped("think", has=("</think>",)),
    _Shipped("think", has=("<think>",)),
    _Shipped("gemma-3", has=("<start_of_turn>", "<end_of_turn>")),
)
"""In order of priority: the first one that fits is taken."""


def response_template_of(chat_template_source: str, declared: Mapping[str, object] | None) -> ResponseTemplate | None:
    """The template of a model's answers: its own, ``declared``, or else a shipped one by the markers in its chat
    template; None if no part of its answers has a known marker. Raises LoadError if its own is broken."""
    if declared is not None:
        return ResponseTemplate.parse(declared)
    for shipped in SHIPPED:
        if all(text in chat_template_source for text in shipped.has):
            if any(text in chat_template_source for text in shipped.lacks):
                continue
            return shipped_template(shipped.name)
    return None


@lru_cache(maxsize=32)
def shipped_template(name: str) -> ResponseTemplate:
    """The shipped template of this name, such as ``hermes``. Raises LoadError if there is none."""
    return ResponseTemplate.parse(json.loads(response_template_file(name).read_text(encoding="utf-8")))
