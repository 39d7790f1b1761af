"""Log-probabilities in OpenAI's shapes: one for chats, another for completions.

Logarithms are natural; an infinite one, which JSON lacks, becomes -9999.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mistralrs.engine.events import TokenLogprob

MIN_LOGPROB = -9999.0
"""Stands for the log-probability of an impossible token."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that its answers' text begins with."""

    text: str
    first_token: str
    """The text of the first token, which has no probability because no token precedes it."""
    first_data: bytes
    """The bytes of that token."""
    trim_space: bool
    """The first token with bytes begins with a space that ``text`` lacks."""


def finite(logprob: float) -> float:
    """Returns the log-probability, or -9999 for an infinite one."""
    return logprob if math.isfinite(logprob) else MIN_LOGPROB


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, object]:
    """Returns ``{"content": [...]}``, one entry for each token."""
    return {
        "content": [
            {**_entry(logprob), "top_logprobs": [_entry(candidate) for candidate in logprob.top]}
            for logprob in logprobs
        ]
    }


class CompletionLogprobs:
    """Renders one choice's log-probabilities, piece by piece, as lists of equal length.

    ``text_offset`` counts characters from the beginning of the choice's text, the echoed prompt included. A token that
    ends within a character has the offset of that character.
    """

    def __init__(self, echo: Echo | None = None) -> None:
        self._echo = echo
        self._trim = echo is not None and echo.trim_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, logprobs: Sequence[TokenLogprob | None]) -> dict[str, list[object]]:
        """Adds the next tokens; None is the first token of the echoed prompt."""
        piece: dict[str, list[object]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for logprob in logprobs:
            if logprob is None:
                assert self._echo is not None  # only the prompt's first token lacks a probability
                token, data = self._echo.first_token, self._echo.first_data
            else:
                token, data = logprob.text, logprob.data
            piece["tokens"].append(_name(token, data))
            piece["token_logprobs"].append(None if logprob is None else finite(logprob.logprob))
            piece["top_logprobs"].append(None if logprob is None else _likeliest(logprob))
            piece["text_offset"].append(self._offset)
            self._offset += self._width(token, data)
        return piece

    def _width(self, token: str, data: bytes) -> int:
        """Returns the number of characters that a token adds to the text."""
        if not data:  # a control token is in the text only if the prompt spells it
            return len(token) if self._echo is not None and self._echo.text.startswith(token, self._offset) else 0
        text = self._decoder.decode(data)
        if self._trim and text:
            self._trim = False
            text = text.removeprefix(" ")
        return len(text)


def _likeliest(logprob: TokenLogprob) -> dict[str, float]:
    """Returns the likeliest tokens and the sampled one, by name; of two with one name the likelier."""
    named: dict[str, float] = {}
    for candidate in (*logprob.top, logprob):
        named.setdefault(_name(candidate.text, candidate.data), finite(candidate.logprob))
    return named


def _name(text: str, data: bytes) -> str:
    """Returns a token's name in a completion's lists; bytes that are no whole characters are spelled out."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
    return text


def _entry(logprob: TokenLogprob) -> dict[str, object]:
    return {"token": logprob.text, "logprob": finite(logprob.logprob), "bytes": list(logprob.data)}
