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

    def token_text(self, token: int) -> str: ...


class TextStream:
    """One choice's bytes to text. What is pushed and what ``finish`` returns add up to the whole answer.

    Of several stop strings the one that is complete first counts, and of those the longest: so the answer does not
    depend on how it is cut into tokens. Invalid UTF-8 becomes U+FFFD.

    A token without bytes, such as a control token, adds nothing to the text, but stop strings are looked for as if its
    name stood there. They may begin where a name begins, but not inside of one: ``<|im_start|>`` and ``<|`` stop before
    that token, ``im_start`` does not.

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
        self._names: list[range] = []  # where names of tokens without bytes stand in what is held
        self._trim = trim_space and tokenizer.space_prefix
        self.stopped = False
        """A stop string is complete; it and what follows is never shown."""

    def push(self, token: int) -> str:
        """The text that may be shown now; empty once stopped."""
        data = self._tokenizer.token_bytes(token)
        return self._advance(self._decoder.decode(data)) if data else self._advance_by_name(token)

    def finish(self, end: int | None = None) -> str:
        """What was held back; half a character at the end becomes U+FFFD.

        ``end``: the token that ended the answer. It is never shown, but its name may make a stop string complete.
        """
        shown = self._advance(self._decoder.decode(b"", final=True))
        if end is not None:
            shown += self._advance_by_name(end)
        return shown + self._release(len(self._held))

    def _advance(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._trim:
            text = text.removeprefix(" ")
            self._trim = False
        self._held += text
        return self._search()

    def _advance_by_name(self, token: int) -> str:
        if self.stopped or not self._stop:
            return ""
        start = len(self._held)
        self._held += self._tokenizer.token_text(token)
        self._names.append(range(start, len(self._held)))
        return self._search()

    def _search(self) -> str:
        """Looks for stop strings in what is held, and returns what need not be held any longer."""
        found = [(start + len(stop), start) for stop in self._stop if (start := self._find(stop)) >= 0]
        if found:
            self.stopped = True
            shown = self._release(min(found)[1])
            self._held, self._names = "", []
            return shown
        unfinished = partial_suffix(self._held, self._stop)
        while unfinished and self._is_inside_name(len(self._held) - unfinished):
            unfinished = partial_suffix(self._held[1 - unfinished :] if unfinished > 1 else "", self._stop)
        return self._release(len(self._held) - unfinished)

    def _find(self, stop: str) -> int:
        """Where a stop string begins; -1: nowhere."""
        start = self._held.find(stop)
        while start >= 0 and self._is_inside_name(start):
            start = self._held.find(stop, start + 1)
        return start

    def _is_inside_name(self, place: int) -> bool:
        return any(name.start < place < name.stop for name in self._names)

    def _release(self, end: int) -> str:
        """The first ``end`` characters that are held but for names, which are whole there; they are held no more."""
        shown, start = "", 0
        for name in self._names:
            if name.stop <= end:
                shown += self._held[start : name.start]
                start = name.stop
        shown += self._held[start:end]
        self._held = self._held[end:]
        self._names = [range(name.start - end, name.stop - end) for name in self._names if name.start >= end]
        return shown


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
