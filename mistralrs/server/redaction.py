"""Crosses API keys out of texts that are written down, however the keys are spelt.

A key is found as it is, with escapes of JSON or of URLs, with the zero bytes of UTF-16 in it, and inside base64, as
``Authorization: Basic`` sends it. A key that an answer spells over several pieces of a stream is not found.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import heapq
import json
import re
from collections.abc import Iterator, Sequence

CROSSED_OUT = "[key]"
STEP = 1 << 15
"""Characters that are searched at once, because no other thread runs during a search."""
SHORTEST_CORE = 4
"""Characters of base64 that are taken for a part of a key; fewer stand in any text."""
_BASIC = re.compile(r"\b[Bb][Aa][Ss][Ii][Cc]\s{1,8}([A-Za-z0-9+/_-]+)")
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")

Span = tuple[int, int]


class KeyRedactor:
    """Crosses out some keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        keys = [key for key in keys if key]
        self._forms = sorted({form for key in keys for form in _forms(key)})
        self._spelt = [re.compile(_spelling(key)) for key in keys]
        self._reach = max((64 * len(key) for key in keys), default=0)
        """Characters that the longest spelling of a key may have."""
        self._cores = sorted({core for key in keys for core in _cores(key)})

    def text(self, text: str) -> str:
        """Returns ``text`` with ``[key]`` in the place of every key; keys that overlap become one."""
        pieces: list[str] = []
        end = 0
        for start, stop in self._spans(text):
            if start > end or not pieces:
                pieces += (text[end:start], CROSSED_OUT)
            end = max(end, stop)
        return "".join([*pieces, text[end:]])

    def value(self, value: object) -> object:
        """Returns a value of JSON with its texts, names and numbers crossed out.

        Raises RecursionError for a very deep one.
        """
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(name): self.value(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.value(element) for element in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            written = json.dumps(value)
            return self.text(written) if self.finds(written) else value
        return value

    def finds(self, text: str) -> bool:
        """Returns whether a key is in ``text``, which may be JSON."""
        return next(self._spans(text), None) is not None

    def _spans(self, text: str) -> Iterator[Span]:
        """Yields where keys are, in the order in which they begin."""
        found = [_occurrences(form, text) for form in self._forms]
        found += [_widened(_occurrences(core, text), text) for core in self._cores]
        if "\\" in text or "%" in text or "\0" in text:
            found += [(match.span() for match in _matches(each, text, reach=self._reach)) for each in self._spelt]
        if self._forms:
            found.append(self._credentials(text))
        return heapq.merge(*found)

    def _credentials(self, text: str) -> Iterator[Span]:
        """Yields where ``Basic`` is followed by base64 with a key in it, however short that is."""
        for match in _matches(_BASIC, text, reach=self._reach + STEP):
            coded = match[1].translate(str.maketrans("-_", "+/"))
            try:
                plain = base64.b64decode(coded + "=" * (-len(coded) % 4)).decode(errors="replace")
            except binascii.Error:
                continue
            if any(form in plain for form in self._forms):
                yield match.span(1)


def _matches(pattern: re.Pattern[str], text: str, *, reach: int) -> Iterator[re.Match[str]]:
    """Searches in pieces of ``STEP`` characters; ``reach`` is the length of the longest match."""
    for begin in range(0, len(text), STEP):
        for match in pattern.finditer(text, begin, begin + STEP + reach):
            if match.start() >= begin + STEP:  # the next piece has it whole
                break
            yield match


def _occurrences(needle: str, text: str) -> Iterator[Span]:
    """Yields all matches, overlapping ones included."""
    place = text.find(needle)
    while place >= 0:
        yield place, place + len(needle)
        place = text.find(needle, place + 1)


def _widened(spans: Iterator[Span], text: str) -> Iterator[Span]:
    """Yields spans with one more character of base64 at either end, which may hold bits of the key."""
    for start, stop in spans:
        yield start - (start > 0 and text[start - 1] in _BASE64), stop + (stop < len(text) and text[stop] in _BASE64)


def _forms(key: str) -> Iterator[str]:
    """Returns the key, and its looks where UTF-8 is taken for Latin-1 or the other way round."""
    yield key
    yield key.encode().decode("latin-1")
    with contextlib.suppress(UnicodeEncodeError):
        yield key.encode("latin-1").decode(errors="replace")


def _spelling(key: str) -> str:
    """Returns a pattern for the key with each character as it is, or escaped once or several times over."""
    return r"\x00{0,3}".join(map(_spelt, re.findall(r"\\+|[^\\]", key)))


def _spelt(part: str) -> str:
    """Returns a pattern for one character, or for several backslashes, which escapes multiply."""
    character, count = part[0], len(part)
    units = character.encode("utf-16-be").hex()
    escaped = "".join(rf"\\{{1,8}}+u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))
    percent = "".join(f"%(?:25){{0,3}}(?i:{byte:02x})" for byte in character.encode())
    if character == "\\":
        return rf"(?:\\{{{count},{16 * count}}}+|(?:{escaped}|{percent}){{{count}}})"
    plain = re.escape(character) if character.isalnum() else rf"\\{{0,8}}+{re.escape(character)}"
    return f"(?:{plain}|{escaped}|{percent})"


def _cores(key: str) -> Iterator[str]:
    """Returns the base64 of the key at each of the three offsets where it may begin, independent of its neighbours."""
    data = key.encode()
    for offset in range(3):
        coded = base64.b64encode(bytes(offset) + data).decode()
        core = coded[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]
        if len(core) >= SHORTEST_CORE:
            yield core
            yield core.translate(str.maketrans("+/", "-_"))
