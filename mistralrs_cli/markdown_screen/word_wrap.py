"""Styled text and its lines, and plain text that comes in pieces: width in cells, and breaks between words and between
wide characters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import regex
from rich.cells import get_character_cell_size
from rich.style import Style

PLAIN = Style.null()
TAB = "    "
_PARTS = re.compile(r"\n|[ \t]+|[^ \t\n]+")
_CLUSTERS = regex.compile(r"\X")
_NEVER_FIRST = frozenset("、。，．・：；？！）］｝」』】〉》〕”’…‥ー々〜")
"""East Asian signs that stay with the character before them."""


class Piece(NamedTuple):
    """Text of one style."""

    text: str
    style: Style = PLAIN
    link: str = ""
    """An address that the text leads to; empty: none."""


class _Atom(NamedTuple):
    """Text that no line break divides."""

    piece: Piece
    width: int
    breaks_before: bool
    """A line may begin here."""


def cell_width(text: str) -> int:
    """Returns the cells that a terminal needs at most: those that join emoji, and those that do not, agree on it."""
    return len(text) if text.isascii() else sum(map(cluster_width, _CLUSTERS.findall(text)))


@functools.lru_cache(4096)
def cluster_width(cluster: str) -> int:
    """Returns the cells of one user-perceived character at most."""
    width = sum(map(get_character_cell_size, cluster))
    return max(width, 2) if "\ufe0f" in cluster else width


def wrap(pieces: Iterable[Piece], width: int) -> list[list[Piece]]:
    """Returns the lines of the text, each at most ``width`` cells, without spaces at their ends.

    A line ends at a line feed, else between two words or wide characters, and within a word only if that alone is
    wider.
    """
    lines: list[list[Piece]] = [[]]
    used = 0
    word: list[_Atom] = []
    for atom in [*_atoms(pieces), _Atom(Piece(""), 0, True)]:
        if atom.breaks_before and word:
            used = _put(word, lines, used, width=max(width, 2))
            word = []
        if atom.piece.text == "\n":
            lines.append([])
            used = 0
        else:
            word.append(atom)
    return [_joined(line) for line in lines]


def units(pieces: Iterable[Piece]) -> list[str]:
    """Returns the parts that no line break divides: words or wide characters, spaces, line feeds."""
    found: list[str] = []
    for atom in _atoms(pieces):
        if atom.breaks_before or not found:
            found.append(atom.piece.text)
        else:
            found[-1] += atom.piece.text
    return found


def clusters(text: str) -> list[str]:
    """Returns the user-perceived characters of a text."""
    found: list[str] = _CLUSTERS.findall(text)
    return found


def _put(word: Sequence[_Atom], lines: list[list[Piece]], used: int, *, width: int) -> int:
    """Adds a word to the last line or to a new one; returns the cells used there."""
    wide = sum(atom.width for atom in word)
    if word[0].piece.text.isspace():
        if used + wide <= width:
            lines[-1] += [atom.piece for atom in word]
        return min(used + wide, width)
    if used and used + wide > width:
        lines.append([])
        used = 0
    if wide <= width:
        lines[-1] += [atom.piece for atom in word]
        return used + wide
    for atom in word:
        for cluster in _CLUSTERS.findall(atom.piece.text):
            size = cluster_width(cluster)
            if used + size > width:
                lines.append([])
                used = 0
            lines[-1].append(atom.piece._replace(text=cluster))
            used += size
    return used


def _atoms(pieces: Iterable[Piece]) -> Iterable[_Atom]:
    after_space = True
    for piece in pieces:
        for part in _PARTS.findall(piece.text):
            if part == "\n" or part[0] in " \t":
                part = part.replace("\t", TAB)
                yield _Atom(piece._replace(text=part), len(part), True)
                after_space = True
            elif part.isascii():
                yield _Atom(piece._replace(text=part), len(part), after_space)
                after_space = False
            else:
                yield from _clusters(piece, part, after_space=after_space)
                after_space = False


def _clusters(piece: Piece, text: str, *, after_space: bool) -> Iterable[_Atom]:
    was_wide = after_space
    for cluster in _CLUSTERS.findall(text):
        size = cluster_width(cluster)
        yield _Atom(
            piece._replace(text=cluster), size, after_space or ((was_wide or size > 1) and cluster not in _NEVER_FIRST)
        )
        was_wide, after_space = size > 1, False


def _joined(line: list[Piece]) -> list[Piece]:
    """Returns a line with neighbours of one style joined, and without spaces at its end."""
    joined: list[Piece] = []
    for piece in line:
        if joined and joined[-1][1:] == piece[1:]:
            joined[-1] = piece._replace(text=joined[-1].text + piece.text)
        else:
            joined.append(piece)
    while joined and not (kept := joined[-1].text.rstrip(" ")):
        joined.pop()
    if joined:
        joined[-1] = joined[-1]._replace(text=kept)
    return joined


class TextWrapper:
    """Breaks lines as ``wrap`` does, however the text is cut into pieces.

    Only the last word, or wide character, is held back, because the next piece may go on with it.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        """``width`` returns the cells of a line at this moment."""
        self._width = width
        self._used = 0
        """Cells of the line, those of ``_spaces`` included."""
        self._spaces = ""
        """Spaces that are shown if a word follows on the same line."""
        self._word = ""
        self._is_within = False
        """The beginning of the word is shown: it is longer than a line."""

    def feed(self, text: str) -> str:
        """Returns what is to be shown of the text until now."""
        *complete, last = units([Piece(self._word + text)]) or [""]
        if last == "\n":
            complete, last = [*complete, last], ""
        shown = [self._put(unit) for unit in complete]
        self._word = last
        if not last.isspace() and cell_width(last) > max(self._width(), 2):
            *begin, self._word = clusters(last)
            shown.append(self._put("".join(begin), ends=False))
        return "".join(shown)

    def finish(self) -> str:
        """Returns the rest, at the end of the text or before another one."""
        rest = self._put(self._word) if self._word else ""
        self._word, self._spaces, self._used = "", "", 0
        return rest

    def _put(self, unit: str, *, ends: bool = True) -> str:
        width = max(self._width(), 2)
        if unit == "\n":
            self._used, self._spaces, self._is_within = 0, "", False
            return unit
        if unit.isspace():
            if self._used + len(unit) <= width:
                self._spaces += unit
            self._used = min(self._used + len(unit), width)
            return ""
        size = cell_width(unit)
        before, self._spaces = self._spaces, ""
        if self._used and not self._is_within and self._used + size > width:
            before, self._used = "\n", 0
        is_long = self._is_within or size > width or not ends
        self._is_within = not ends
        if not is_long:
            self._used += size
            return before + unit
        return before + "".join(self._put_cluster(cluster, width) for cluster in clusters(unit))

    def _put_cluster(self, cluster: str, width: int) -> str:
        size = cell_width(cluster)
        is_full = self._used + size > width
        self._used = size if is_full else self._used + size
        return f"\n{cluster}" if is_full else cluster
