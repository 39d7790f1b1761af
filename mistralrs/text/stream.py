"""Turns the tokens of one answer into text that may be shown at once: whole characters, without stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from mistralrs.errors import RequestError


class TokenBytes(Protocol):
    """The interface of a tokenizer that a stream needs."""

    space_prefix: bool

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to a text; none for control tokens."""
        ...

    def token_text(self, token: int) -> str:
        """The text of a token for display, control tokens spelled out."""
        ...


class TextStream:
    """The text of one answer. The texts of all ``push`` calls and of ``finish`` add up to the whole answer.

    The stop string that is complete first ends the answer, and the longest if several are, so that the answer does not
    depend on its tokens' boundaries. Invalid UTF-8 becomes U+FFFD.

    A token without bytes, such as a control token, adds nothing to the text unless it is one of ``spelled``, whose
    names are text. Stop strings are matched as if every name stood there. They may begin where a name begins, but not
    inside of one: ``<|im_start|>`` and ``<|`` stop before that token, ``im_start`` does not.

    ``trim_space`` drops one space at the start if the tokenizer writes a space in front of a text, because the first
    word of a chat's answer then carries one. It must be off when the text continues a prompt.

    Raises RequestError for an empty stop string.
    """

    def __init__(
        self,
        tokenizer: TokenBytes,
        *,
        stop: Sequence[str] = (),
        trim_space: bool = False,
        spelled: Collection[int] = (),
    ) -> None:
        if "" in stop:
            raise RequestError("a stop string is empty", hint="leave it out", param="stop")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        self._names: list[range] = []  # ranges of ``_pending`` that are names of tokens without bytes
        self._spelled = spelled
        self._shown: list[range] = []  # those of ``_names`` that are text
        self._trim = trim_space and tokenizer.space_prefix
        self.stop_string: str | None = None
        """The stop string that is complete; it and all later text is never shown."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self.stop_string is not None

    def push(self, token: int) -> str:
        """Adds a token; returns the text that may be shown now, which is empty once stopped."""
        data = self._tokenizer.token_bytes(token)
        return self._advance(self._decoder.decode(data)) if data else self._advance_by_name(token)

    def finish(self, end: int | None = None) -> str:
        """Ends the answer; returns the text held back, in which an incomplete character becomes U+FFFD.

        ``end``: the token that ended the answer. It is shown only if it is spelled, but its name may complete a stop
        string in any case.
        """
        shown = self._advance(self._decoder.decode(b"", final=True))
        if end is not None:
            shown += self._advance_by_name(end)
        return shown + self._release(len(self._pending))

    def _advance(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._trim:
            text = text.removeprefix(" ")
            self._trim = False
        self._pending += text
        return self._search()

    def _advance_by_name(self, token: int) -> str:
        is_shown = token in self._spelled
        if self.stopped or not (self._stop or is_shown):
            return ""
        shown = ""
        if is_shown:
            shown = self._advance(self._decoder.decode(b"", final=True))  # half of a character before the name
            self._trim = False
            if self.stopped:
                return shown
        start = len(self._pending)
        self._pending += self._tokenizer.token_text(token)
        name = range(start, len(self._pending))
        self._names.append(name)
        if is_shown:
            self._shown.append(name)
        return shown + self._search()

    def _search(self) -> str:
        """Searches the pending text for stop strings; returns the text that need not be held back any longer."""
        found = [(start + len(stop), start) for stop in self._stop if (start := self._find(stop)) >= 0]
        if found:
            end, start = min(found)
            self.stop_string = self._pending[start:end]
            shown = self._release(start)
            self._pending, self._names, self._shown = "", [], []
            return shown
        unfinished = partial_suffix(self._pending, self._stop)
        while unfinished and self._is_inside_name(len(self._pending) - unfinished):
            unfinished = partial_suffix(self._pending[1 - unfinished :] if unfinished > 1 else "", self._stop)
        return self._release(len(self._pending) - unfinished)

    def _find(self, stop: str) -> int:
        """The index at which a stop string begins; -1 if there is none."""
        start = self._pending.find(stop)
        while start >= 0 and self._is_inside_name(start):
            start = self._pending.find(stop, start + 1)
        return start

    def _is_inside_name(self, place: int) -> bool:
        return any(name.start < place < name.stop for name in self._names)

    def _release(self, end: int) -> str:
        """Removes the first ``end`` pending characters and returns them without names that are not text; no name
        crosses ``end``."""
        shown, start = "", 0
        for name in self._names:
            if name.stop <= end and name not in self._shown:
                shown += self._pending[start : name.start]
                start = name.stop
        shown += self._pending[start:end]
        self._pending = self._pending[end:]
        self._names, self._shown = _moved(self._names, end), _moved(self._shown, end)
        return shown


def _moved(names: Iterable[range], count: int) -> list[range]:
    """The ranges behind the first ``count`` characters, once these are gone."""
    return [range(name.start - count, name.stop - count) for name in names if name.start >= count]


def partial_suffix(text: str, whole: Iterable[str]) -> int:
    """Length of the longest end of ``text`` that is a proper prefix of one of ``whole``; 0 if there is
    none."""
    return max((_partial_suffix(text, candidate) for candidate in whole), default=0)


def _partial_suffix(text: str, candidate: str) -> int:
    start = text.find(candidate[0], max(0, len(text) - len(candidate) + 1))
    while start >= 0:
        if candidate.startswith(text[start:]):
            return len(text) - start
        start = text.find(candidate[0], start + 1)
    return 0
