"""How models write their tool calls, as texts around names and arguments, for grammars that hold an answer to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mistralrs.text.response.call_notation import KEY, Notation
from mistralrs.text.response.pieces import ToolCallArguments, ToolCallStart
from mistralrs.text.response.response_parser import ResponseParser
from mistralrs.text.response.response_template import ResponseTemplate
from mistralrs.text.response.shipped_templates import SHIPPED

NAME, ARGUMENTS = "$name", "$arguments"
VALUE = "$value"


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The form of the calls in one answer: ``prefix``, calls with ``separator`` between them, ``suffix``.

    Names of control tokens in it stand for these tokens.
    """

    call: str
    """One call, with ``$name`` and behind it ``$arguments``, which are JSON unless ``parameter`` or ``notation`` is
    given."""
    prefix: str = ""
    separator: str = ""
    suffix: str = ""
    trigger: str = ""
    """The beginning of ``prefix`` and ``call`` that no other text has; empty: calls are the whole answer."""
    think_open: str = ""
    """Begins the thinking in front of calls; empty: there is none."""
    think_close: str = ""
    message: str = ""
    """Begins each message of an answer that consists of several, but the first; every thought is one then."""
    note_open: str = ""
    """Begins a message with text in front of a call, which ``think_close`` ends; empty: there is none."""
    text_open: str = ""
    """Begins the text of an answer that has no call; empty: it needs no mark."""
    parameter: str = ""
    """One argument, with ``$key`` and behind it ``$value``, which is a text as it is, or JSON."""
    notation: Notation | None = None
    """How arguments are written that are neither JSON nor in the form of ``parameter``."""
    repeats: bool = True
    """Whether an answer may have several calls; otherwise the chat template would refuse them in a later turn."""

    def written(self, calls: list[tuple[str, str]]) -> str:
        """The text of calls, each a name and its arguments as JSON."""
        texts = [self.call.replace(NAME, name).replace(ARGUMENTS, self._spelt(text)) for name, text in calls]
        return self.prefix + self.separator.join(texts) + self.suffix

    def _spelt(self, arguments: str) -> str:
        if self.notation is not None:
            return self.notation.spelt_arguments(arguments)
        if not self.parameter:
            return arguments
        values = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in json.loads(arguments).items()
        }
        return "".join(self.parameter.replace(KEY, key).replace(VALUE, value) for key, value in values.items())


_ONE = '{"name": "$name", "arguments": $arguments}'
FORMATS: Mapping[str, CallFormat] = {
    "hermes": CallFormat(
        call=f"<tool_call>\n{_ONE}\n</tool_call>",
        separator="\n",
        trigger="<tool_call>",
        think_open="<think>",
        think_close="</think>",
    ),
    "mistral-v11": CallFormat(
        call="[TOOL_CALLS]$name[ARGS]$arguments",
        trigger="[TOOL_CALLS]",
        think_open="[THINK]",
        think_close="[/THINK]",
    ),
    "mistral-v3": CallFormat(call=_ONE, prefix="[TOOL_CALLS][", separator=", ", suffix="]", trigger="[TOOL_CALLS]"),
    "granite-3": CallFormat(call=_ONE, prefix="<|tool_call|>[", separator=", ", suffix="]", trigger="<|tool_call|>"),
    "phi-4": CallFormat(
        call=_ONE, prefix="<|tool_call|>[", separator=", ", suffix="]<|/tool_call|>", trigger="<|tool_call|>"
    ),
    "llama-3": CallFormat(call='{"name": "$name", "parameters": $arguments}', separator="; ", repeats=False),
    "qwen3-coder": CallFormat(
        call="<tool_call>\n<function=$name>\n$arguments</function>\n</tool_call>",
        separator="\n",
        trigger="<tool_call>",
        think_open="<think>",
        think_close="</think>",
        parameter="<parameter=$key>\n$value\n</parameter>\n",
    ),
    "olmo-3": CallFormat(
        call="$name($arguments)",
        prefix="<function_calls>\n",
        separator="\n",
        suffix="\n</function_calls>",
        trigger="<function_calls>",
        think_open="<think>",
        think_close="</think>",
        notation=Notation(argument="$key=", ends=("</function_calls>",)),
    ),
    "functiongemma": CallFormat(
        call="<start_function_call>call:$name$arguments<end_function_call>",
        trigger="<start_function_call>",
        notation=Notation(
            argument="$key:",
            member="$key:",
            opening="{",
            closing="}",
            separator=",",
            text_mark="<escape>",
            ends=("<end_function_call>",),
        ),
    ),
    "gemma-3": CallFormat(
        call=_ONE,
        prefix="```tool_code\n[",
        separator=", ",
        suffix="]\n```",
        trigger="```tool_code",
        notation=Notation(argument='"$key": ', opening="{", closing="}", ends=("```",)),
    ),
    "harmony": CallFormat(
        call="<|channel|>commentary to=functions.$name <|constrain|>json<|message|>$arguments",
        separator="<|call|><|start|>assistant",
        think_open="<|channel|>analysis<|message|>",
        think_close="<|end|>",
        message="<|start|>assistant",
        note_open="<|channel|>commentary<|message|>",
        text_open="<|channel|>final<|message|>",
        repeats=False,
    ),
}
"""By the name of the shipped response template."""
_PROBE = [("first", '{"a": "x"}'), ("second", '{"b": [1, {}]}')]
_PROBE_TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {key: {"type": kind}}}},
    }
    for name, key, kind in (("first", "a", "string"), ("second", "b", "array"))
]


def call_format_of(chat_template_source: str, template: ResponseTemplate | None) -> CallFormat | None:
    """The form in which a model writes calls, by its chat template's markers; None if that is not known, or is none
    that ``template`` reads. It has no thinking where the chat template names none of its marks."""
    names = (
        each.name
        for each in SHIPPED
        if all(text in chat_template_source for text in each.has)
        and not any(text in chat_template_source for text in each.lacks)
    )
    found = FORMATS.get(next(names, ""))
    if found is None or template is None or not is_read(found, template):
        return None
    marks = (found.think_open, found.think_close)
    thinks = found.message or any(mark and mark in chat_template_source for mark in marks)
    return found if thinks else replace(found, think_open="", think_close="")


def is_read(form: CallFormat, template: ResponseTemplate) -> bool:
    """Whether a response template reads calls in this form as they were meant."""
    parser = ResponseParser(template, tools=_PROBE_TOOLS)
    names: list[str] = []
    arguments: dict[int, str] = {}
    for piece in [*parser.push(form.written(_PROBE)), *parser.finish()]:
        if isinstance(piece, ToolCallStart):
            names.append(piece.name)
        elif isinstance(piece, ToolCallArguments):
            arguments[piece.index] = arguments.get(piece.index, "") + piece.text
        else:
            return False
    read = [(name, json.loads(arguments.get(place, "{}"))) for place, name in enumerate(names)]
    return read == [(name, json.loads(text)) for name, text in _PROBE]
