"""Budgets of thinking in requests, and schemas that hold for what follows the thinking."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import pytest

from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.answers.answer_parts import AnswerParts
from mistralrs.api.serving.grammars.thinking_budget import thinking_marks
from mistralrs.api.serving.prepare import Prepared
from mistralrs.engine.config import ThinkingBudget
from mistralrs.errors import RequestError
from mistralrs.grammar.compile_grammar import compile_grammar
from mistralrs.grammar.token_table import TokenTable
from mistralrs.text.response.shipped_templates import SHIPPED, shipped_template
from tests.api.served import CHATML, served
from tests.api.tooling import HERMES, TOOLS, ask, calling, marking_tokenizer

SPACED = HERMES.replace("</think>{{", "\\n</think>\\n\\n{{").replace(
    "{{ m.reasoning", "{{ '\\n</think>\\n\\n' }}{{ m.reasoning"
)
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [1, 23]}}}
ON = {"chat_template_kwargs": {"enable_thinking": True}}


def budget(prepared: Prepared) -> ThinkingBudget:
    found = prepared.requests[0].thinking
    assert found is not None
    return found


def closing_text(prepared: Prepared, model: ServedModel) -> str:
    tokenizer = model.tokenizer
    return "".join(
        tokenizer.token_bytes(token).decode() or tokenizer.token_text(token) for token in budget(prepared).closing
    )


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize(("template", "closing"), [(HERMES, "</think>"), (SPACED, "\n</think>\n\n")])
def test_a_budget_closes_the_thought_as_the_template_writes_it(marks: bool, template: str, closing: str) -> None:
    model = calling(template=template, marks=marks)
    prepared = ask(model, thinking_token_budget=7, n=2, tools=TOOLS)
    assert closing_text(prepared, model) == closing
    assert all(request.thinking == budget(prepared) for request in prepared.requests)
    assert (budget(prepared).tokens, budget(prepared).open, budget(prepared).close) == (7, "<think>", "</think>")
    assert ask(model).requests[0].thinking is None


@pytest.mark.parametrize("name", ["think", "hermes", "mistral-v11"])
def test_marks_of_shipped_templates_are_seen_at_a_prompts_end(name: str) -> None:
    template = shipped_template(name)
    anchor = template.anchor.literals[0]
    opening, closing = thinking_marks(template) or ("", "")
    for end, is_open in ((opening, True), (opening + "\n", True), (f"{opening}a{closing}\n\n", False), ("", False)):
        assert AnswerParts(template, f"hi{anchor}{end}").begins_with_thought is is_open


def test_the_prompt_may_have_begun_the_thought() -> None:
    assert budget(ask(thinking_token_budget=0, **ON)).is_open
    assert not budget(ask(thinking_token_budget=0)).is_open
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>I"}]
    going_on = {"messages": begun, "continue_final_message": True, "add_generation_prompt": False}
    assert budget(ask(thinking_token_budget=0, **going_on)).is_open


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (served(CHATML), {}),
        (replace(served(CHATML), responses=shipped_template("llama-3")), {}),
        (replace(served(CHATML), responses=shipped_template("harmony")), {}),
        (calling(), {"guided_regex": "a+"}),
        (calling(), {"guided_choice": ["a", "b"]}),
    ],
)
def test_where_no_thought_can_be_closed_a_budget_is_refused_by_name(model: ServedModel, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as raised:
        ask(model, thinking_token_budget=3, **fields)
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "thinking_token_budget")
    assert raised.value.hint


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True])
def test_a_budget_is_a_number_of_tokens(wrong: object) -> None:
    with pytest.raises(RequestError) as raised:
        ask(thinking_token_budget=wrong)
    assert raised.value.param == "thinking_token_budget"


def test_shipped_templates_have_marks_wherever_they_think() -> None:
    """Harmony's channels end in several ways."""
    thinking = {each.name for each in SHIPPED if shipped_template(each.name).has_reasoning}
    marked = {name: thinking_marks(shipped_template(name)) for name in thinking}
    assert {name for name, found in marked.items() if found is None} == {"harmony"}
    assert marked["mistral-v11"] == ("[THINK]", "[/THINK]")
    assert marked["think"] == ("<think>", "</think>")


def accepts(prepared: Prepared, text: str, *, ends: bool = True) -> bool:
    held = prepared.requests[0].grammar
    assert held is not None
    table = TokenTable(marking_tokenizer())
    constraint = compile_grammar(held.kind, held.text, table, timeout_s=60).constraint()
    ids = marking_tokenizer().encode(text, special=True)
    if constraint.accept(ids) < len(ids):
        return False
    constraint.mask(array("I", [0]) * table.mask_words)
    return constraint.is_accepting or not ends


def test_a_schema_holds_for_what_follows_the_thinking() -> None:
    """Also where the prompt has begun the thought, which then has to end."""
    free = ask(calling(marks=True), response_format=FORMAT)
    assert free.parts is not None
    for text in ("1", "23", "<think>Hm. 7</think>23", "<think></think>\n\n1"):
        assert accepts(free, text), text
    for text in ("2", "Hm", "<think>1", "<think>Hm</think>Hm", "<think>a</think><think>b</think>1"):
        assert not accepts(free, text), text
    begun = ask(calling(marks=True), response_format=FORMAT, **ON)
    assert accepts(begun, "Hm</think>\n1")
    assert not accepts(begun, "1")
    assert not accepts(begun, "Hm</think>\n2")
    assert not accepts(begun, "Hm</think>" + "\n" * 9, ends=False)  # a lost model writes space for ever
    anything = ask(calling(marks=True), response_format={"type": "json_object"}, thinking_token_budget=5)
    assert accepts(anything, '<think>a</think>{"a": 1}')
    assert not accepts(anything, "<think>a</think>1")
    assert anything.requests[0].thinking is not None


def test_a_model_whose_chat_template_names_no_thoughts_has_none_in_front_of_json() -> None:
    """It would take a thought for the words that the schema forbids, and not find its end."""
    other = replace(calling(marks=True), template=served(CHATML).template)
    prepared = ask(other, response_format=FORMAT)
    assert prepared.parts is None
    assert accepts(prepared, "1")
    assert not accepts(prepared, "<think>a</think>1")


def test_behind_a_thought_that_the_prompt_has_closed_there_is_none() -> None:
    closed = calling(marks=True, template=HERMES.replace("<think>\n{% endif %}", "<think></think>\n\n{% endif %}"))
    prepared = ask(closed, response_format=FORMAT, **ON)
    assert accepts(prepared, "1")
    assert not accepts(prepared, "<think>a</think>1")
