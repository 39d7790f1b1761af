"""The tokens of a text or of a conversation, and the text of tokens, for callers who want only these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mistralrs.api.schemas.request_bodies import ApplyTemplateBody, TemplateOptions, TokenizeBody
from mistralrs.api.schemas.tool_bodies import ShownTools
from mistralrs.api.served_model import ServedModel
from mistralrs.api.serving.chat_messages import conversation
from mistralrs.api.serving.chat_prompt import Conversation, require_template
from mistralrs.api.serving.grammars.tool_choice import shown_tools, unknown_tool_fields
from mistralrs.api.serving.policy import Policy
from mistralrs.errors import RequestError
from mistralrs.text.chat_template import ChatTemplate
from mistralrs.text.prompt_tokens import prompt_tokens
from mistralrs.text.tokenizer import Tokenizer

_OF_TEXTS = ("add_special_tokens", "parse_special")
_OF_MESSAGES = (*TemplateOptions.model_fields, *ShownTools.model_fields)


def body_tokens(
    body: TokenizeBody, model: ServedModel, policy: Policy, *, max_bytes: int | None = None
) -> tuple[list[int], tuple[str, ...]]:
    """Returns the ids of a body's text or conversation, and the names of the fields that do not apply to it.

    ``max_bytes``: bytes of UTF-8 at most; no context bounds them here. Raises RequestError.
    """
    sources = [name for name in ("content", "prompt", "messages") if getattr(body, name) is not None]
    if len(sources) != 1:
        raise RequestError(
            "exactly one of content, prompt and messages is to be given", param=sources[1] if sources else "content"
        )
    if body.messages is None:
        unused = tuple(name for name in _OF_MESSAGES if getattr(body, name) is not None)
        return _text_tokens(body, model, max_bytes), unused
    template = require_template(model, policy)
    asked = body_conversation(body, template)
    unused = tuple(name for name in _OF_TEXTS if getattr(body, name) is not None)
    pieces = asked.prompt(template, model.tokenizer).pieces
    return _tokens(pieces, model.tokenizer, max_bytes), (*unused, *asked.unused)


def body_conversation(body: TokenizeBody | ApplyTemplateBody, template: ChatTemplate) -> Conversation:
    """Returns the conversation of a body's messages and tools. Raises RequestError if it cannot be rendered."""
    assert body.messages is not None
    asked = conversation(body.messages, body, template, tools=shown_tools(body), effort=body.reasoning_effort)
    return replace(asked, unused=(*unknown_tool_fields(body), *asked.unused))


def text_of_tokens(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """Returns the text of tokens, control tokens spelled out, so that their text has the same tokens again.

    Bytes that are no text become U+FFFD. Raises RequestError for a number that is no token.
    """
    for place, token in enumerate(tokens):
        if not 0 <= token < tokenizer.vocab_size:
            raise RequestError(f"{token} is no token; the last is {tokenizer.vocab_size - 1}", param=f"tokens[{place}]")
    start = next((place for place, token in enumerate(tokens) if tokenizer.token_bytes(token)), len(tokens))
    leading = "".join(tokenizer.token_text(token) for token in tokens[:start])
    spelled = b"".join(tokenizer.token_bytes(t) or tokenizer.token_text(t).encode() for t in tokens[start:])
    text = spelled.decode("utf-8", "replace")
    if tokenizer.space_prefix:  # written by the tokenizer, not by the author of the text
        text = text.removeprefix(" ")
    return leading + text


def _text_tokens(body: TokenizeBody, model: ServedModel, max_bytes: int | None) -> list[int]:
    text = body.content if body.content is not None else body.prompt
    assert text is not None
    bos = body.prompt is not None if body.add_special_tokens is None else body.add_special_tokens
    special = body.parse_special is not False
    return _tokens([(text, special)], model.tokenizer, max_bytes, bos=bos and model.tokenizer.add_bos)


def _tokens(
    pieces: Sequence[tuple[str, bool]], tokenizer: Tokenizer, max_bytes: int | None, *, bos: bool = False
) -> list[int]:
    if max_bytes is not None:
        size = sum(len(text.encode("utf-8", "replace")) for text, _ in pieces)
        if size > max_bytes:
            raise RequestError(
                f"the text has {size} bytes; more than {max_bytes} are not tokenized at once",
                hint="send it in parts",
                code="request_too_large",
            )
    return list(prompt_tokens(tokenizer, pieces, bos=bos).ids)
