"""The grammar of an answer that calls tools: calls in the model's own form, with arguments that match their schemas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mistralrs.api.serving.grammars import notation_schema, parameter_grammar
from mistralrs.api.serving.grammars.notation_grammar import NotationGrammar
from mistralrs.api.serving.grammars.thought_grammar import TERMINALS, MarkedGrammar
from mistralrs.errors import RequestError
from mistralrs.grammar.grammar_text import GrammarText
from mistralrs.text.response.call_format import ARGUMENTS, NAME

if TYPE_CHECKING:
    from mistralrs.api.serving.grammars.tool_choice import Tool, ToolUse
    from mistralrs.text.response.call_format import CallFormat
    from mistralrs.text.tokenizer import Tokenizer

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def tool_grammar(
    use: ToolUse, form: CallFormat, tokenizer: Tokenizer, *, prompt_end: str, content: str | None = None
) -> GrammarText:
    """Returns the grammar of an answer. ``prompt_end``: the end of the prompt, which may have begun the thinking.
    ``content``: the JSON schema of an answer that is no call; None: it is any text.

    Raises RequestError with the path of a schema that cannot be held to the letter.
    """
    return GrammarText("lark", _ToolGrammar(use, form, tokenizer).text(prompt_end, content))


def content_schema(grammar: GrammarText, use: ToolUse) -> str:
    """Returns the JSON schema that the request's own grammar is, which has been checked. Raises RequestError for
    another kind of grammar, and where an answer must be a call."""
    if use.must_call:
        raise RequestError(
            f"{use.choice_field} asks for a call, and the request's grammar for another answer",
            hint="send one of them",
            param=use.choice_field,
        )
    if grammar.kind not in ("json_schema", "json_object"):
        raise RequestError(
            f"{use.shown_field} cannot be used with a grammar of the kind {grammar.kind}",
            hint="a JSON schema can: the answer is then calls, or JSON that obeys it",
            param=use.shown_field,
        )
    return grammar.text if grammar.kind == "json_schema" else json.dumps(_ANY_OBJECT)


def unheld_error(use: ToolUse) -> RequestError:
    """Returns the error of a choice that only a grammar could hold, for a model whose form of calls is not known."""
    if not use.is_held:  # the request's own grammar asks for one
        return _unheld(use.shown_field)
    strict = next((tool for tool in use.callable if tool.strict), None)
    if strict is not None:
        field = strict.path.removesuffix("parameters") + "strict"
    elif not use.must_call and not use.parallel and not use.legacy:
        field = "parallel_tool_calls"
    else:
        field = use.shown_field if use.legacy else use.choice_field
    return _unheld(field)


def _unheld(field: str) -> RequestError:
    return RequestError(
        f"{field} cannot be held to: the form in which this model writes its calls cannot be made a grammar",
        hint="let the model choose freely: no grammar, tool_choice auto, and neither strict nor parallel_tool_calls",
        code="unsupported_parameter",
        param=field,
    )


class _ToolGrammar(MarkedGrammar):
    def __init__(self, use: ToolUse, form: CallFormat, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._use = use
        self._form = form
        self._parallel = use.parallel and form.repeats
        self._notation = None if form.notation is None else NotationGrammar(form.notation, self)

    def text(self, prompt_end: str, content: str | None) -> str:
        """Returns the grammar in llguidance's dialect of Lark."""
        form = self._form
        lead, lead_rules = self.lead(form.think_open, form.think_close, prompt_end, message=form.message)
        main, main_rules = self._calls() if self._use.must_call or content is not None else self._free()
        if content is not None:
            main, main_rules = f"{main} | content", [f"content: {self.written(form.text_open)} %json {content}"]
        rules = [f"start: {lead} ({main})", *lead_rules, *main_rules, *self._call_rules(), TERMINALS]
        return "\n".join(rules)

    def _calls(self) -> tuple[str, list[str]]:
        """Returns calls that are the whole answer."""
        form = self._form
        more = f" ({self.written(form.separator)} call)*" if self._parallel else ""
        return f"{self.written(form.prefix)} call{more} {self.written(form.suffix)}", []

    def _free(self) -> tuple[str, list[str]]:
        """Returns free text, in which the trigger begins calls."""
        form = self._form
        if form.text_open:
            note = f"note: {self.written(form.note_open)} note_rest {self.written(form.message)}"
            calls, _ = self._calls()
            return f"{self.written(form.text_open)} TEXT? | note* {calls}", [
                note,
                self.until("note_rest", form.think_close),
            ]
        if not form.trigger:
            calls, _ = self._calls()
            first = json.dumps((form.prefix + form.call)[0])
            return f"PLAIN? | {calls}", [f"PLAIN: /[^{_in_class(json.loads(first))} \\n](?s:.*)/"]
        in_prefix = bool(form.prefix)
        rest = self.written(form.prefix[len(form.trigger) :]) + " call" if in_prefix else "rest"
        more = f" ({self.written(form.separator)} call)*" if in_prefix and self._parallel else ""
        rules = [self.until("head", form.trigger), f"calls: head {rest}{more} {self.written(form.suffix)}"]
        # calls of their own each have the trigger, so that text and further calls may follow one another
        return ("calls* TEXT?" if self._parallel else "TEXT? | calls"), rules

    def _call_rules(self) -> Iterator[str]:
        form = self._form
        before, after_name = form.call.split(NAME)
        between, after = after_name.split(ARGUMENTS)
        names = range(len(self._use.callable))
        yield f"call: {' | '.join(f'call_{place}' for place in names)}"
        if has_rest := not form.prefix and bool(form.trigger):
            yield f"rest: {' | '.join(f'rest_{place}' for place in names)}"
        for place, tool in enumerate(self._use.callable):
            end = f"{json.dumps(tool.name)} {self.written(between)} arguments_{place} {self.written(after)}"
            yield f"call_{place}: {self.written(before)} {end}"
            if has_rest:
                yield f"rest_{place}: {self.written(before[len(form.trigger) :])} {end}"
            held = tool.strict or self._use.must_call
            if self._notation is not None:
                yield from notation_schema.argument_rules(tool, place, self._notation, held=held)
            elif form.parameter:
                yield from parameter_grammar.argument_rules(tool, place, form.parameter, held=held)
            else:
                yield f"arguments_{place}: %json {self._schema(tool)}"
        if self._notation is not None:
            yield from self._notation.shared_rules()
        if form.parameter:
            yield from parameter_grammar.shared_rules(form.parameter)

    def _schema(self, tool: Tool) -> str:
        from mistralrs.grammar.json_grammar import inline_schema
        from mistralrs.grammar.translation import reason_in

        schema = tool.schema if tool.strict or self._use.must_call else _ANY_OBJECT
        try:
            inline_schema(schema)
        except RequestError as error:
            raise RequestError(
                f"{tool.path}: {reason_in(error)}", hint=error.hint, code="invalid_schema", param=tool.path
            ) from None
        return json.dumps(schema)


def _in_class(character: str) -> str:
    return "\\" + character if not character.isalnum() else character
