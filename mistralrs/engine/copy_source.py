"""A place in a text that a sequence copies with changes: where the copy goes on after a word that is another one.

An edit repeats a text but for a few words. Behind such a word an n-gram has to occur before it can be looked up; the
place in the text is known at once, as most changes replace a word, add one or leave one out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

LEAST_COPIED = 5
"""Copied tokens from which on the text probably goes on behind a change."""
COPIED_FOR_CHANGED = 2
"""Copied tokens for each token of a change; a place is given up that has fewer."""
MAX_CHANGED = 16
"""Tokens of a change, at most."""
NEAR = 2
"""Tokens of the text that the first token of a change may leave out: farther ahead an equal one is often another."""
NEAR_LATER = 8
"""The same for later tokens of a change."""


class WordPart(Enum):
    """The part of a word that a token spells."""

    START = "start"
    """A word, or its beginning, behind a space."""
    REST = "rest"
    """Letters without a space before them: a word at the start of a line too."""
    NONE = "none"
    """Punctuation, space or control."""


def word_part(spelling: bytes) -> WordPart:
    """The part of a word that a token with these bytes spells."""
    text = spelling.decode("utf-8", "replace")
    letters = text.lstrip()
    if not letters[:1].isalnum() and letters[:1] != "\ufffd":  # bytes of a character that other tokens complete
        return WordPart.NONE
    return WordPart.REST if letters == text else WordPart.START


def no_words(token: int) -> WordPart:
    """Knows no word, where no vocabulary is known."""
    return WordPart.NONE


@dataclass(slots=True)
class CopySource:
    """A place in a text up to which a sequence copied it."""

    text: list[int] | None
    """The text; None: the sequence itself."""
    place: int
    """The index of the token that may follow."""
    length: int
    """Tokens before it that are equal, since the last change."""
    copied: int
    """Tokens that were copied, changes between them."""
    changed: int = 0
    """Tokens of the change that the sequence is in or was in just now; 0: it copies."""
    change_place: int = 0
    """The index of the first token that the change replaced."""

    @property
    def is_copied(self) -> bool:
        """Whether so much was copied that the text probably goes on."""
        return self.copied >= LEAST_COPIED

    def follow(self, tokens: list[int], start: int, part: Callable[[int], WordPart]) -> bool:
        """Takes the sequence's tokens from ``start`` on. Returns False if the place is lost."""
        text = tokens if self.text is None else self.text
        for index in range(start, len(tokens)):
            end = index if self.text is None else len(text)
            if self.place >= end:
                return False
            if text[self.place] == tokens[index]:
                self.place += 1
                self.length += 1
                self.copied += 1
                if self.length >= 2:
                    self.changed = 0
            elif self.changed >= min(self.copied // COPIED_FOR_CHANGED, MAX_CHANGED):
                return False
            else:
                self._change(text, end, token=tokens[index], part=part)
        return self.place < (len(tokens) if self.text is None else len(text))

    def draft(self, tokens: list[int], count: int) -> tuple[int, ...]:
        """Up to ``count`` tokens that may follow ``tokens``, those of the draft itself repeated if they end the
        sequence."""
        if self.text is not None:
            return tuple(self.text[self.place : self.place + count])
        draft = tokens[self.place : self.place + count]
        return tuple((draft * (count // len(draft) + 1))[:count])

    def _change(self, text: list[int], end: int, *, token: int, part: Callable[[int], WordPart]) -> None:
        """Goes on behind a token that the text, which has ``end`` tokens, does not have in its place."""
        is_first = self.changed == 0
        if is_first:
            self.change_place = self.place
        self.changed += 1
        start = self.change_place + is_first
        try:
            self.place = text.index(token, start, min(start + (NEAR if is_first else NEAR_LATER), end)) + 1
            self.length = 1  # tokens between were left out
        except ValueError:
            self.place, self.length = self._guess(text, end, token=token, part=part), 0

    def _guess(self, text: list[int], end: int, *, token: int, part: Callable[[int], WordPart]) -> int:
        """The place behind a change with ``token``: a word for a word, a mark for a mark, or something was added."""
        place = self.change_place
        if place >= end:
            return place
        is_word, was_word = part(token) is not WordPart.NONE, part(text[place]) is not WordPart.NONE
        if is_word is not was_word:
            return place
        place += 1
        while was_word and place < end and part(text[place]) is WordPart.REST:
            place += 1
        return place
