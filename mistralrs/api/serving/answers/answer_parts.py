"""The way in which an answer's text is read: as content, reasoning and tool calls, by the model's response template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mistralrs.api.serving.grammars.thinking_budget import thinking_marks
from mistralrs.errors import RequestError
from mistralrs.text.response.response_parser import ResponseParser
from mistralrs.text.response.without_calls import without_tool_calls

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel
    from mistralrs.api.serving.grammars.tool_choice import ToolUse
    from mistralrs.engine.config import Request
    from mistralrs.grammar.grammar_text import GrammarText
    from mistralrs.text.response.response_template import ResponseTemplate
    from mistralrs.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class AnswerParts:
    """The reading of the answers to one prompt."""

    template: ResponseTemplate
    prompt_end: str
    """The end of the prompt's text, which may have begun the thinking."""
    tools: Sequence[Mapping[str, Any]] = ()

    @property
    def begins_with_thought(self) -> bool:
        """Returns whether the prompt has begun a thought."""
        parser = self.parser()
        parser.push("x")  # space at the prompt's end may go on, and its mark is read when it does not
        return parser.is_thinking

    def parser(self) -> ResponseParser:
        """Returns a parser at the beginning of one answer."""
        return ResponseParser(self.template, prompt_end=self.prompt_end, tools=self.tools)


def with_parts(
    request: Request, use: ToolUse | None, model: ServedModel, *, prompt_end: str
) -> tuple[Request, AnswerParts | None]:
    """Returns the request whose answer spells the marks of its parts, and the reading of the answer.

    Without tools, text that has the form of a call is content. Raises RequestError where the model's form of calls is
    not known, or the answer cannot be held to the choice.
    """
    template = model.responses
    if use is None:
        template = None if template is None else without_tool_calls(template)
        if request.grammar is not None:
            marks = thinking_marks(template)
            if marks is None or not _thinks(model, marks) or request.grammar.kind not in ("json_schema", "json_object"):
                return request, None  # the whole answer matches the grammar: nothing of it is thinking
            request = replace(request, grammar=_after_thinking(request.grammar, marks, model, prompt_end))
    elif template is None or not template.has_tool_calls:
        raise RequestError(
            f"{use.shown_field} cannot be used: the form in which this model writes its calls is not known",
            hint="choose another model, or one whose tokenizer_config.json has a response_template",
            code="unsupported_parameter",
            param=use.shown_field,
        )
    if template is None:
        return request, None
    if use is not None and (use.is_held or request.grammar is not None):
        held = _grammar(use, model, prompt_end, otherwise=request.grammar)
        request = replace(request, grammar=held, trim_space=False)
    parts = AnswerParts(template, prompt_end, () if use is None else use.shown)
    return replace(request, spelled_tokens=control_tokens(template.markers, model.tokenizer)), parts


def _thinks(model: ServedModel, marks: tuple[str, str]) -> bool:
    """Returns whether the chat template names a mark of thoughts. Another model of the same family was not trained to
    think, and would be lost in a thought that a grammar allows it in place of the words that it forbids."""
    return model.template is None or any(mark in model.template.source for mark in marks)


def _grammar(use: ToolUse, model: ServedModel, prompt_end: str, *, otherwise: GrammarText | None) -> GrammarText:
    """Returns the grammar of an answer, which is ``otherwise`` where it is no call. It is checked."""
    from mistralrs.api.serving.grammars.tool_grammar import (  # few need its library
        content_schema,
        tool_grammar,
        unheld_error,
    )
    from mistralrs.grammar.translation import reason_in

    content = None if otherwise is None else content_schema(otherwise, use)
    if model.call_format is None:
        raise unheld_error(use)
    grammar = tool_grammar(use, model.call_format, model.tokenizer, prompt_end=prompt_end, content=content)
    try:
        model.check_grammar(grammar)
    except RequestError as error:
        raise RequestError(
            f"{use.shown_field} cannot be held to: {reason_in(error)}",
            hint=error.hint,
            code="invalid_schema",
            param=use.shown_field,
        ) from None
    return grammar


def _after_thinking(grammar: GrammarText, marks: tuple[str, str], model: ServedModel, prompt_end: str) -> GrammarText:
    """Returns the grammar that holds for what follows the thinking. It is checked: another error than the schema's own
    is one of both together."""
    from mistralrs.api.serving.grammars.thought_grammar import grammar_after_thinking  # few need its library

    schema = grammar.text if grammar.kind == "json_schema" else json.dumps({"type": "object"})
    combined = grammar_after_thinking(schema, marks, model.tokenizer, prompt_end=prompt_end)
    model.check_grammar(combined)
    return combined


def control_tokens(markers: frozenset[str], tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the control tokens that are, or are in, one of the markers; the others are written as text."""
    found: set[int] = set()
    for marker in markers:
        for start, end in tokenizer.controls.spans(marker):
            found.update(tokenizer.encode(marker[start:end].strip(), special=True))
    return frozenset(found - tokenizer.eos_ids)
