"""From the pieces of a prompt to its ids, if they can fit into a context: the one place where texts that people send
are tokenized. Knows lengths; does not know what a prompt is for.

A text that cannot fit is refused, or cut, before it is tokenized: what is left takes time and memory in proportion to
the context. Between two pieces it is asked whether anybody still wants the ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mistralrs.errors import ContextLengthError
from mistralrs.text.components import QUICK_BYTES
from mistralrs.text.tokenizer import Tokenizer

SHORT = QUICK_BYTES
"""Characters of a prompt that is tokenized without asking first."""
SEAM = 64
"""Tokens more than fit that are kept of a text that is cut: a cut may change the tokens next to it."""
_HOPELESS = 4
_ANY = 1 << 62

Piece = tuple[str, bool]
"""A text, and whether control tokens that it spells are such."""


@dataclass(frozen=True, slots=True)
class Room:
    """The space that a prompt must fit into."""

    max_len: int
    """Tokens of the context."""
    truncate: bool
    """Drop the beginning of a prompt that does not fit; else it is refused."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Ids of a prompt, more than fit only where it is to be truncated."""

    ids: tuple[int, ...]
    dropped: int
    """Tokens at least of the beginning that was not even tokenized."""


def check_texts(tokenizer: Tokenizer, texts: Iterable[str], room: Room) -> None:
    """Raises ContextLengthError for the texts of a conversation that are so long that it need not even be rendered.

    A template may shorten what people say, but none leaves out three quarters.
    """
    if room.truncate:
        return
    pieces = [(text, False) for text in texts]
    if sum(len(text) for text, _ in pieces) > SHORT:
        least = _least(tokenizer, pieces, enough=_HOPELESS * room.max_len)
        if least > _HOPELESS * room.max_len:
            raise ContextLengthError(least, room.max_len, at_least=True)


def prompt_tokens(
    tokenizer: Tokenizer, pieces: Sequence[Piece], *, room: Room | None = None, bos: bool = False
) -> PromptTokens:
    """The ids of all pieces as one prompt; ``bos`` is as for ``Tokenizer.encode``. ``room`` None: any number.

    Raises ContextLengthError for pieces that are certain not to fit unless the beginning is to be dropped, and
    RequestError where one cannot be tokenized.
    """
    dropped = 0
    if room is not None and sum(len(text) for text, _ in pieces) > SHORT:
        least = _least(tokenizer, pieces, enough=room.max_len)
        if least > room.max_len:
            if not room.truncate:
                raise ContextLengthError(least, room.max_len, at_least=True)
            pieces, left_out = _cut(tokenizer, pieces, tokens=room.max_len + SEAM)
            dropped = _least(tokenizer, left_out, enough=_ANY)
            bos = bos and not left_out
    ids: list[int] = []
    for place, (text, special) in enumerate(pieces):
        ids += tokenizer.encode(text, special=special, bos=bos and place == 0)
    return PromptTokens(tuple(ids), dropped)


def _least(tokenizer: Tokenizer, pieces: Sequence[Piece], *, enough: int) -> int:
    least = 0
    for text, special in pieces:
        if least > enough:
            break
        least += tokenizer.least_tokens(text, special=special, enough=enough - least)
    return least


def _cut(tokenizer: Tokenizer, pieces: Sequence[Piece], *, tokens: int) -> tuple[list[Piece], list[Piece]]:
    """The end of the pieces that has more than so many tokens, and what is in front of it."""
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
