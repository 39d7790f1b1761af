"""Tokenizes the pieces of a prompt if they can fit into the context. All texts that people send are tokenized here.

A text that cannot fit is refused, or truncated, before it is tokenized, so that time and memory are proportional to the
context. Tokenizing stops between two pieces if the request is cancelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mistralrs.errors import ContextLengthError
from mistralrs.text.components import QUICK_BYTES
from mistralrs.text.tokenizer import Tokenizer

SHORT = QUICK_BYTES
"""Characters up to which a prompt is tokenized without computing a bound first."""
SEAM = 64
"""Tokens beyond the context that are kept of a truncated text, because truncation may change the next tokens."""
END_CHARACTERS = 16 << 10
"""Characters of a prompt's end that ``PromptTokens`` keeps: those that an answer continues are among them."""
_REFUSAL_FACTOR = 4
_UNLIMITED = 1 << 62

Piece = tuple[str, bool]
"""A text, and whether control tokens in it are special."""


@dataclass(frozen=True, slots=True)
class Room:
    """The context that a prompt must fit into."""

    max_len: int
    """Tokens of the context."""
    truncate: bool
    """Whether the beginning of a prompt that does not fit is dropped; otherwise the prompt is refused."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Ids of a prompt. They may exceed the context only if the prompt is to be truncated."""

    ids: tuple[int, ...]
    dropped: int
    """A lower bound of the tokens in the beginning that was dropped before tokenizing."""
    end: str
    """The last ``END_CHARACTERS`` of the prompt's text."""


def check_texts(tokenizer: Tokenizer, texts: Iterable[str], room: Room) -> None:
    """Raises ContextLengthError for a conversation that is too long to be worth rendering.

    A template may shorten messages, but none leaves out three quarters of them.
    """
    if room.truncate:
        return
    pieces = [(text, False) for text in texts]
    if sum(len(text) for text, _ in pieces) > SHORT:
        least = _least(tokenizer, pieces, enough=_REFUSAL_FACTOR * room.max_len)
        if least > _REFUSAL_FACTOR * room.max_len:
            raise ContextLengthError(least, room.max_len, at_least=True)


def prompt_tokens(
    tokenizer: Tokenizer, pieces: Sequence[Piece], *, room: Room | None = None, bos: bool = False
) -> PromptTokens:
    """The ids of all pieces as one prompt; ``bos`` is as for ``Tokenizer.encode``. ``room`` None allows any number.

    Raises ContextLengthError for pieces that are certain not to fit, unless the beginning is to be dropped, and
    RequestError if a piece cannot be tokenized.
    """
    dropped = 0
    if room is not None and sum(len(text) for text, _ in pieces) > SHORT:
        least = _least(tokenizer, pieces, enough=room.max_len)
        if least > room.max_len:
            if not room.truncate:
                raise ContextLengthError(least, room.max_len, at_least=True)
            pieces, left_out = _truncate(tokenizer, pieces, tokens=room.max_len + SEAM)
            dropped = _least(tokenizer, left_out, enough=_UNLIMITED)
            bos = bos and not left_out
    ids: list[int] = []
    for place, (text, special) in enumerate(pieces):
        ids += tokenizer.encode(text, special=special, bos=bos and place == 0)
    return PromptTokens(tuple(ids), dropped, _end(pieces))


def _end(pieces: Sequence[Piece]) -> str:
    end = ""
    for text, _ in reversed(pieces):
        if len(end) >= END_CHARACTERS:
            break
        end = text + end
    return end[-END_CHARACTERS:]


def _least(tokenizer: Tokenizer, pieces: Sequence[Piece], *, enough: int) -> int:
    least = 0
    for text, special in pieces:
        if least > enough:
            break
        least += tokenizer.least_tokens(text, special=special, enough=enough - least)
    return least


def _truncate(tokenizer: Tokenizer, pieces: Sequence[Piece], *, tokens: int) -> tuple[list[Piece], list[Piece]]:
    """Splits the pieces: returns an end that has more than ``tokens`` tokens, and the pieces before it."""
    kept: list[Piece] = []
    left = list(pieces)
    while left and tokens >= 0:
        text, special = left.pop()
        end = tokenizer.tail(text, special=special, tokens=tokens)
        kept.insert(0, (end, special))
        if len(end) < len(text):
            left.append((text[: -len(end)], special))
            break
        tokens -= tokenizer.least_tokens(end, special=special, enough=tokens)
    return kept, left
