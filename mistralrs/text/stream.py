"""Turns the tokens of one answer into text that may be shown at once: whole characters, stop strings held back.

Knows bytes and stop strings; does not know why tokens come or what ends an answer otherwise.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

from mistralrs.errors import RequestError


class TokenBytes(Protocol):
    """What a stream needs of a tokenizer."""

    space_prefix: bool

    def token_bytes(self, token: int) -> bytes: ...


class TextStream:
    """One choice's bytes to text. What is pushed and what ``finish`` returns add up to the whole answer.

    Of several stop strings the one that is complete first counts, and of those the longest: so the answer does not
    depend on how it is cut into tokens. Invalid UTF-8 becomes U+FFFD.

    ``trim_space`` drops one space at the start if the tokenizer is one that writes a space in front of a text: a
    chat answer's first word carries it and nobody meant it. Leave it off when the text continues a prompt.

    Raises RequestError for an empty stop string.
    """

    def __init__(self, tokenizer: TokenBytes, *, stop: Sequence[str] = (), trim_space: bool = False) -> None:
        if "" in stop:
            raise RequestError("a stop string is empty", hint="leave it out", param="stop")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._trim = trim_space and tokenizer.space_prefix
        self.stopped = False
        """A stop string is complete; it and what follows is never shown."""

    def push(self, token: int) -> str:
        """The text that may be shown now; empty once stopped."""
        return self._advance(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def finish(self) -> str:
        """What was held back; half a character at the end becomes U+FFFD."""
        shown = self._advance(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return shown

    def _advance(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._trim:
            text = text.removeprefix(" ")
            self._trim = False
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        shown = len(text) - partial_suffix(text, self._stop)
        self._held = text[shown:]
        return text[:shown]


def partial_suffix(text: str, whole: Iterable[str]) -> int:
    """Length of the longest end of ``text`` that is the beginning, but not all, of one of ``whole``; 0 if there is
    none."""
    return max((_partial_suffix(text, candidate) for candidate in whole), default=0)


def _partial_suffix(text: str, candidate: str) -> int:
    start = text.find(candidate[0], max(0, len(text) - len(candidate) + 1))
    while start >= 0:
        if candidate.startswith(text[start:]):
            return len(text) - start
        start = text.find(candidate[0], start + 1)
    return 0
