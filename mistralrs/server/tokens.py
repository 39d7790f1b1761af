"""The answers of /tokenize, /detokenize and /apply-template, made from their bodies.

A field that llama.cpp and vLLM name differently has both names. Fields that do not apply to the
body's text are named as ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mistralrs.api.schemas import parameter_table
from mistralrs.api.schemas.parameter_table import Endpoint
from mistralrs.api.schemas.request_bodies import ApplyTemplateBody, DetokenizeBody, TemplateOptions, TokenizeBody
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.adapter_choice import named_model
from mistralrs.api.serving.chat_messages import conversation
from mistralrs.api.serving.chat_prompt import Conversation, require_template
from mistralrs.api.serving.policy import Policy
from mistralrs.errors import RequestError
from mistralrs.server.answer_headers import AnswerHeaders
from mistralrs.text.prompt_tokens import prompt_tokens
from mistralrs.text.tokenizer import Tokenizer

Answered = tuple[dict[str, object], AnswerHeaders]

MAX_TEXT_BYTES = 1 << 20
"""Bytes of UTF-8 that /tokenize takes at once."""
_OF_TEXTS = ("add_special_tokens", "parse_special")
_OF_MESSAGES = tuple(TemplateOptions.model_fields)


def tokenize(body: TokenizeBody, model: ServedModel, policy: Policy) -> Answered:
    """Returns the tokens of a text or of a conversation. Raises RequestError for a body that cannot be answered."""
    sources = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(sources) != 1:
        raise RequestError(
            "exactly one of content, prompt and messages is to be given", param=sources[1] if sources else "content"
        )
    if body.messages is None:
        unused = [name for name in _OF_MESSAGES if getattr(body, name) is not None]
        tokens = _text_tokens(body, model)
    else:
        asked = _conversation(body, model, policy)
        unused = [name for name in _OF_TEXTS if getattr(body, name) is not None]
        unused += asked.unused
        assert model.template is not None
        tokens = _tokens(asked.prompt(model.template, model.tokenizer).pieces, model.tokenizer)
    shown = [_piece(token, model.tokenizer) for token in tokens] if body.with_pieces else tokens
    answer: dict[str, object] = {"tokens": shown, "count": len(tokens), "max_model_len": model.max_len}
    return answer, _notes("tokenize", body, model, policy, unused)


def detokenize(body: DetokenizeBody, model: ServedModel, policy: Policy) -> Answered:
    """Returns the text of tokens, control tokens spelled out, so that ``tokenize`` gives the same tokens again.

    Raises RequestError.
    """
    tokenizer = model.tokenizer
    for place, token in enumerate(body.tokens):
        if token >= tokenizer.vocab_size:
            raise RequestError(f"{token} is no token; the last is {tokenizer.vocab_size - 1}", param=f"tokens[{place}]")
    start = next((place for place, token in enumerate(body.tokens) if tokenizer.token_bytes(token)), len(body.tokens))
    leading = "".join(tokenizer.token_text(token) for token in body.tokens[:start])
    spelled = b"".join(tokenizer.token_bytes(t) or tokenizer.token_text(t).encode() for t in body.tokens[start:])
    text = spelled.decode("utf-8", "replace")
    if tokenizer.space_prefix:  # written by the tokenizer, not by the author of the text
        text = text.removeprefix(" ")
    return {"content": leading + text, "prompt": leading + text}, _notes("detokenize", body, model, policy, ())


def apply_template(body: ApplyTemplateBody, model: ServedModel, policy: Policy) -> Answered:
    """Returns the prompt of a conversation.

    Raises RequestError if the template refuses the messages or fails on them.
    """
    asked = _conversation(body, model, policy)
    assert model.template is not None
    return {"prompt": asked.text(model.template)}, _notes("apply_template", body, model, policy, asked.unused)


def _conversation(body: TokenizeBody | ApplyTemplateBody, model: ServedModel, policy: Policy) -> Conversation:
    template = require_template(model, policy)
    assert body.messages is not None
    return conversation(body.messages, body, template)


def _text_tokens(body: TokenizeBody, model: ServedModel) -> list[int]:
    text = body.content if body.content is not None else body.prompt
    assert text is not None
    bos = body.prompt is not None if body.add_special_tokens is None else body.add_special_tokens
    return _tokens([(text, body.parse_special is not False)], model.tokenizer, bos=bos and model.tokenizer.add_bos)


def _tokens(pieces: Sequence[tuple[str, bool]], tokenizer: Tokenizer, *, bos: bool = False) -> list[int]:
    """Returns the ids of a text, which no context bounds here."""
    size = sum(len(text.encode("utf-8", "replace")) for text, _ in pieces)
    if size > MAX_TEXT_BYTES:
        raise RequestError(
            f"the text has {size} bytes; more than {MAX_TEXT_BYTES} are not tokenized at once",
            hint="send it in parts",
            code="request_too_large",
        )
    return list(prompt_tokens(tokenizer, pieces, bos=bos).ids)


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
