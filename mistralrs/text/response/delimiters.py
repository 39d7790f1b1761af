"""The delimiters between the parts of an answer: literal texts, or foreign patterns that get little time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mistralrs.errors import EngineError, LoadError
from mistralrs.parsing import parse_nested
from mistralrs.text.stream import partial_suffix

if TYPE_CHECKING:
    import regex

MAX_PATTERN = 2000
"""Characters of a pattern or a literal, at most."""
MATCH_S = 1.0
"""Processor time for all patterns of one answer, beside ``PUSH_S`` for every further text of it."""
PUSH_S = 0.0005
_NOT_TEXT = "\x00"
_TOKEN = re.compile(r"<[^<>]+>|\[[^\[\]\s]+\]")
_CONTROL_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|[pPNLgkm](?:\{[^}]*\}|<[^>]*>)|(.))", re.S
)
_GROUP = re.compile(r"\((?:\?(?:P?<[A-Za-z_]\w*>|P[=>]\w+|#[^)]*|<?[=!]|[>:|(]|[A-Za-z0-9-]*:?))?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.S)
_REPEAT = re.compile(r"[*+?]|\{[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Found:
    """A delimiter in a text: ``start`` to ``end``."""

    start: int
    end: int
    captures: Mapping[str, str]
    """Texts of the named groups that took part."""


@dataclass(frozen=True, slots=True)
class Delimiter:
    """One or several literals, or a pattern in the language of the `regex` package, with ``.`` for any character."""

    literals: tuple[str, ...] = ()
    pattern: str | None = None

    @property
    def groups(self) -> frozenset[str]:
        """The names of the pattern's groups."""
        return frozenset(compiled(self.pattern).groupindex) if self.pattern is not None else frozenset()

    def find(self, text: str, start: int, clock: MatchClock, *, final: bool) -> Found | int | None:
        """The first occurrence from ``start``, or None.

        An index instead says that what begins there may become an occurrence, another one, or a longer one when the
        text goes on; not if it is ``final``. A match of a pattern that ends before the text does is decided, also where
        an optional end of the pattern could still come.
        """
        if self.pattern is None:
            return self._find_literal(text, start, final=final)
        return self._find_pattern(text, start, clock, final=final)

    def last_end(self, text: str, clock: MatchClock) -> int | None:
        """The end of the last occurrence; occurrences do not overlap."""
        end, start = None, 0
        while start <= len(text):
            found = self.find(text, start, clock, final=True)
            if not isinstance(found, Found):
                break
            end = found.end
            start = max(found.end, found.start + 1)
        return end

    def _find_literal(self, text: str, start: int, *, final: bool) -> Found | int | None:
        places = [(place, -len(each)) for each in self.literals if (place := text.find(each, start)) >= 0]
        tail = text[max(start, len(text) - max(map(len, self.literals))) :]
        if not final and (unfinished := partial_suffix(tail, self.literals)):
            pending = len(text) - unfinished
            if not places or pending <= min(places)[0]:
                return pending
        if not places:
            return None
        place, length = min(places)
        return Found(place, place - length, {})

    def _hidden(self, text: str, start: int, match: regex.Match[str], clock: MatchClock) -> int | None:
        """The place before a complete match where another one begins that is not complete yet: a search finds complete
        ones only, if there are some."""
        if match.start() == start:
            return None
        pattern = compiled(self.pattern)
        # It goes on to the text's end, and thereby over the first character of the complete one.
        end = min(match.start() + 1, match.end())
        first = pattern.search(text, start, end, partial=True, timeout=clock.limit())
        if first is None:
            return None
        # A complete one is there only for a pattern of one character, or one that counts the text's end.
        for place in range(first.start() if first.partial else start, match.start()):
            if pattern.match(text, place, partial=True, timeout=clock.limit()) is not None:
                return place
        return None

    def _find_pattern(self, text: str, start: int, clock: MatchClock, *, final: bool) -> Found | int | None:
        pattern = compiled(self.pattern)
        with clock.timing(self):
            match = pattern.search(text, start, partial=not final, timeout=clock.limit())
            if match is None:
                return None
            if final:
                return _found(match)
            if match.partial:
                return None if match.start() == len(text) else match.start()
            hidden = self._hidden(text, start, match, clock)
            if hidden is not None:
                return hidden
            if match.end() == len(text):
                return match.start()
            # The end of the text may count for the pattern, in `$` or in a look-ahead.
            again = pattern.match(text + _NOT_TEXT, match.start(), timeout=clock.limit())
            if again is None or again.span() != match.span() or again.groupdict() != match.groupdict():
                return match.start()
            return _found(match)


def _found(match: Any) -> Found:
    captures = {name: text for name, text in match.groupdict().items() if text is not None}
    return Found(match.start(), match.end(), captures)


@lru_cache(maxsize=256)
def compiled(pattern: str) -> regex.Pattern[str]:
    """The pattern compiled; ``.`` is any character. Raises LoadError if it is none."""
    import regex  # takes 80 ms, and many models need no pattern

    try:
        return parse_nested(regex.compile, pattern, flags=regex.DOTALL)
    except (regex.error, ValueError, OverflowError, KeyError, IndexError, TypeError) as error:
        raise LoadError(f"the pattern {shown(pattern)} does not compile: {error}") from None


def shown(text: str) -> str:
    """The text in quotes, shortened, for an error."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


@dataclass(slots=True)
class MatchClock:
    """Limits the time that the patterns take in one answer, since a repository's patterns are foreign code."""

    left_s: float = MATCH_S
    _started: float = field(default=0.0, init=False)
    _delimiter: Delimiter | None = field(default=None, init=False)

    def timing(self, delimiter: Delimiter) -> MatchClock:
        """A context for matches of a pattern, each of which takes ``limit()`` as its timeout.

        Leaving it raises EngineError if a match took longer, or all of the answer's did.
        """
        self._delimiter = delimiter
        return self

    def limit(self) -> float:
        """The time that the next match may take, in seconds. Raises TimeoutError if none is left."""
        left = self.left_s - (time.thread_time() - self._started)
        if left <= 0:
            raise TimeoutError
        return left

    def __enter__(self) -> None:
        self._started = time.thread_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        self.left_s -= time.thread_time() - self._started
        if isinstance(error, TimeoutError):
            pattern = self._delimiter.pattern if self._delimiter is not None else None
            raise EngineError(
                f"the pattern {shown(pattern or '')} of the model's response template takes too long for this answer",
                hint="mend response_template in the model's tokenizer_config.json, or remove it there",
                code="response_template_too_slow",
            ) from None


def literal_texts(pattern: str) -> Iterator[str]:
    """The texts that a pattern has literally, in order: runs of plain and escaped characters.

    A run ends at a group's border, an alternative, a class or a quantifier, which takes the character before it out of
    the run. Characters of classes, and texts that only a back reference would make, are not among them.
    """
    run = ""
    place = 0
    while place < len(pattern):
        character = pattern[place]
        taken: str | None = None
        if character == "\\" and (escape := _ESCAPE.match(pattern, place)):
            taken, place = _escaped(escape), escape.end()
        elif character == "[" and (several := _CLASS.match(pattern, place)):
            place = several.end()
        elif character == "(" and (group := _GROUP.match(pattern, place)):
            place = group.end()
        elif character in ".^$|()":
            place += 1
        elif quantifier := _REPEAT.match(pattern, place):
            place = quantifier.end()
        else:
            taken, place = character, place + 1
        repeated = taken is not None and _REPEAT.match(pattern, place) is not None
        if taken is None or repeated:
            if run:
                yield run
            run = ""
            if taken is not None:
                yield taken
        else:
            run += taken
    if run:
        yield run


def _escaped(escape: re.Match[str]) -> str | None:
    code = escape[1] or escape[2] or escape[3]
    if code:
        return chr(int(code, 16)) if int(code, 16) < 0x110000 else None
    character = escape[4]
    if character is None:
        return None
    if character.isalnum():
        return _CONTROL_ESCAPES.get(character)
    return character


def token_names(text: str) -> Iterator[str]:
    """The text, and the parts of it that look like a token's name: ``<...>`` and ``[...]``."""
    yield text
    yield from _TOKEN.findall(text)
