"""The tokens of a vocabulary as llguidance needs them: bytes, names of control tokens, end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

from llguidance import LLTokenizer

from mistralrs.errors import RequestError

_ANCHOR = "\n"
"""A text in front of which SentencePiece's space is written, in place of the text that is to be encoded."""


class TextTokens(Protocol):
    """The interface of a tokenizer that a token table needs."""

    vocab_size: int
    eos_ids: frozenset[int]
    bos_id: int | None

    @property
    def quick_bytes(self) -> int:
        """Length, in bytes of UTF-8, up to which texts are tokenized in this process."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text; none for control tokens."""
        ...

    def token_text(self, token: int) -> str:
        """The text of a token for display, control tokens spelled out."""
        ...

    def encode(self, text: str, *, special: bool, bos: bool = False) -> list[int]:
        """The token ids of a text."""
        ...


class TokenTable:
    """The tokens of one vocabulary, and the prefix tree of their bytes that masks are computed with.

    ``vocab_size`` is the number of logits of a row. It may exceed the tokenizer's: ids without text are never allowed.
    Control tokens are allowed only where a Lark grammar names them, and end tokens only where the grammar accepts.
    Any thread may use a table. Building the tree of 128,000 tokens takes about half a second.
    """

    def __init__(self, tokenizer: TextTokens, *, vocab_size: int | None = None) -> None:
        self.vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self.eos_ids = tuple(sorted(token for token in tokenizer.eos_ids if token < tokenizer.vocab_size))
        if not self.eos_ids:
            raise RequestError(
                "the model's vocabulary has no end token, which a grammar needs to end an answer",
                hint="name its eos_token_id in generation_config.json, if it has one",
                code="unsupported_grammar",
                param="grammar",
            )
        self._tokenizer = tokenizer
        data = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        names = {
            token: tokenizer.token_text(token).encode()
            for token, text in enumerate(data)
            if token in self.eos_ids or not text
        }
        self.names = {token: name for token, name in names.items() if name}
        """Control and end tokens with their names."""
        padding = [b""] * (self.vocab_size - tokenizer.vocab_size)
        self.token_bytes = [b"" if token in self.names else text for token, text in enumerate(data)] + padding
        """Each token's bytes; none for those that only a name in a grammar allows, or nothing."""
        self.tree = LLTokenizer(_LibraryView(self, tokenizer.bos_id), eos_token=list(self.eos_ids))  # type: ignore[arg-type]

    @property
    def mask_words(self) -> int:
        """Length of a mask in words of 32 bits."""
        return (self.vocab_size + 31) // 32

    def tokens_of(self, data: bytes) -> list[int]:
        """Tokens whose bytes join to ``data``, or to a start of it if the vocabulary lacks a byte.

        These are the tokenizer's own, which a model expects, wherever that can be told.
        """
        if len(data) <= self._tokenizer.quick_bytes:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                return self._longest_matches(data)
            for anchor in ("", _ANCHOR):
                ids = self._tokenizer.encode(anchor + text, special=False)
                if (found := self._end_that_joins_to(ids, data)) is not None:
                    return found
        return self._longest_matches(data)

    def _end_that_joins_to(self, ids: Sequence[int], data: bytes) -> list[int] | None:
        rest = len(data)
        for index in range(len(ids) - 1, -1, -1):
            rest -= len(self.token_bytes[ids[index]])
            if rest <= 0:
                found = list(ids[index:])
                return found if b"".join(self.token_bytes[token] for token in found) == data else None
        return [] if not data else None

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        pairs = [(data, token) for token, data in enumerate(self.token_bytes) if data]
        return dict(reversed(pairs))  # the lowest id of those with the same bytes

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)

    def _longest_matches(self, data: bytes) -> list[int]:
        found, start = [], 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._by_bytes), None)
            if end is None:
                break
            found.append(self._by_bytes[data[start:end]])
            start = end
        return found


class _LibraryView:
    """The attributes that llguidance reads from a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, table: TokenTable, bos_id: int | None) -> None:
        self.eos_token_id = table.eos_ids[0]
        self.bos_token_id = bos_id
        self.tokens = [table.names.get(token, text) for token, text in enumerate(table.token_bytes)]
        self.special_token_ids = sorted(table.names)
        self._tokens_of = table.tokens_of

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokens_of(text.encode() if isinstance(text, str) else text)
