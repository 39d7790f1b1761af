"""The limit that a caller sets on a model's thinking, and the marks of its thoughts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mistralrs.engine.config import ThinkingBudget
from mistralrs.errors import RequestError
from mistralrs.text.response.delimiters import literal_texts
from mistralrs.text.response.response_template import Part

if TYPE_CHECKING:
    from mistralrs.api.served_model import ServedModel
    from mistralrs.api.serving.answers.answer_parts import AnswerParts
    from mistralrs.text.response.delimiters import Delimiter
    from mistralrs.text.response.response_template import ResponseTemplate

FIELD = "thinking_token_budget"


def thinking_marks(template: ResponseTemplate | None) -> tuple[str, str] | None:
    """Returns the texts that open and close a thought; None where there is none, or not one text for each."""
    regions = () if template is None else template.regions
    region = next((region for region in regions if region.part is Part.REASONING), None)
    if region is None:
        return None
    opening, closing = _only_text(region.open), _only_text(region.close)
    return None if opening is None or closing is None else (opening, closing)


def thinking_budget(tokens: int | None, model: ServedModel, parts: AnswerParts | None) -> ThinkingBudget | None:
    """Returns the limit on the thinking of an answer; None: there is none. ``parts``: the reading of the answer.

    Raises RequestError where the answer has no thoughts with known marks.
    """
    if tokens is None:
        return None
    if thinking_marks(model.responses) is None:
        raise RequestError(
            f"{FIELD} cannot be used: this model has no thinking with a mark that ends it",
            hint="leave it out",
            code="unsupported_parameter",
            param=FIELD,
        )
    marks = None if parts is None else thinking_marks(parts.template)
    if marks is None or parts is None:
        raise RequestError(
            f"{FIELD} cannot be used with this grammar: it holds for the whole answer, which has no thinking then",
            hint="a JSON schema holds for what follows the thinking",
            code="unsupported_parameter",
            param=FIELD,
        )
    opening, closing = marks
    source = "" if model.template is None else model.template.source
    return ThinkingBudget(tokens, opening, closing, _closing_tokens(closing, source, model), parts.begins_with_thought)


def _closing_tokens(mark: str, source: str, model: ServedModel) -> tuple[int, ...]:
    """Returns the tokens of the mark with the line ends that the chat template writes around it."""
    before = after = 0
    for found in re.finditer(rf"((?:\\n)*){re.escape(mark)}((?:\\n)*)", source):
        before, after = max(before, len(found[1]) // 2), max(after, len(found[2]) // 2)
    encode = model.tokenizer.encode
    ends = encode("\n" * before, special=False), encode("\n" * after, special=False)
    return (*ends[0], *encode(mark, special=True), *ends[1])


def _only_text(delimiter: Delimiter | None) -> str | None:
    """Returns the one text that a delimiter has; None if there are several, or none."""
    if delimiter is None:
        return None
    texts = delimiter.literals if delimiter.pattern is None else tuple(literal_texts(delimiter.pattern))
    return texts[0] if len(texts) == 1 else None
