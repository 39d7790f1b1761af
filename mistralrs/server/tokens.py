"""The answers of /tokenize, /detokenize and /apply-template, made from their bodies.

A field that llama.cpp and vLLM name differently has both names. Fields that do not apply to the
body's text are named as ignored.
"""

from __future__ import annotations

from collections.abc import Iterable

from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.parameter_table import Endpoint
from mistralrs.api.schemas.request_bodies import ApplyTemplateBody, DetokenizeBody, TokenizeBody
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.adapter_choice import named_model
from mistralrs.api.serving.chat_prompt import require_template
from mistralrs.api.serving.policy import Policy
from mistralrs.api.serving.text_tokens import body_conversation, body_tokens, text_of_tokens
from mistralrs.server.answer_headers import AnswerHeaders
from mistralrs.text.tokenizer import Tokenizer

Answered = tuple[dict[str, object], AnswerHeaders]

MAX_TEXT_BYTES = 1 << 20
"""Bytes of UTF-8 that /tokenize takes at once."""


def tokenize(body: TokenizeBody, model: ServedModel, policy: Policy) -> Answered:
    """Returns the tokens of a text or of a conversation. Raises RequestError for a body that cannot be answered."""
    tokens, unused = body_tokens(body, model, policy, max_bytes=MAX_TEXT_BYTES)
    shown = [_piece(token, model.tokenizer) for token in tokens] if body.with_pieces else tokens
    answer: dict[str, object] = {"tokens": shown, "count": len(tokens), "max_model_len": model.max_len}
    return answer, _notes("tokenize", body, model, policy, unused)


def detokenize(body: DetokenizeBody, model: ServedModel, policy: Policy) -> Answered:
    """Returns the text of tokens, control tokens spelled out, so that ``tokenize`` gives the same tokens again.

    Raises RequestError.
    """
    text = text_of_tokens(body.tokens, model.tokenizer)
    return {"content": text, "prompt": text}, _notes("detokenize", body, model, policy, ())


def apply_template(body: ApplyTemplateBody, model: ServedModel, policy: Policy) -> Answered:
    """Returns the prompt of a conversation.

    Raises RequestError if the template refuses the messages or fails on them.
    """
    template = require_template(model, policy)
    asked = body_conversation(body, template)
    return {"prompt": asked.text(template)}, _notes("apply_template", body, model, policy, asked.unused)


def _piece(token: int, tokenizer: Tokenizer) -> dict[str, object]:
    """Returns a token's text, or its bytes where they are no text."""
    data = tokenizer.token_bytes(token) or tokenizer.token_text(token).encode()
    try:
        return {"id": token, "piece": data.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(data)}


def _notes(
    endpoint: Endpoint,
    body: TokenizeBody | DetokenizeBody | ApplyTemplateBody,
    model: ServedModel,
    policy: Policy,
    unused: Iterable[str],
) -> AnswerHeaders:
    _, other_model = named_model(body.model, model.adapters, policy)
    ignored = (*parameter_table.unserved(endpoint, body), *unused)
    if policy.strict:
        parameter_table.refuse_ignored(ignored)
    return AnswerHeaders(ignored, 0, other_model)
