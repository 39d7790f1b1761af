"""The output streams: answers go to stdout, the rest to stderr, and no character that could control a terminal."""

from __future__ import annotations

import io
import os
import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from mistralrs.engine.events import Usage
from mistralrs.errors import MistralrsError

SEPARATOR = "=" * 23
"""The separator of the answers of a concurrent run."""
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Embeddings, overrides and isolates, which may reorder later characters on the screen."""
_UNSEEN_CATEGORIES = ("Cf", "Cs", "Zl", "Zp")
_SEEN_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Signs around numbers in Arabic and Kaithi: Unicode calls them format characters, and they are drawn."""
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters of Hangul that are drawn without ink."""


@dataclass(frozen=True, slots=True)
class Streams:
    """The three streams of the process."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    @property
    def interactive(self) -> bool:
        """Returns whether a person types and sees an editor's screen."""
        return is_terminal(self.stdin) and (is_terminal(self.stdout) or is_terminal(self.stderr))


class Sanitizer:
    """Removes control characters and escape sequences from text that comes in pieces.

    Line feeds and tabs stay. A sequence may begin in one piece and end in another. A string sequence (a title, a
    clipboard) ends at the end of the line at the latest, so that a stray beginning cannot hide the rest.
    """

    def __init__(self) -> None:
        self._state: Callable[[str], str] = self._ground

    def feed(self, text: str) -> str:
        """Returns the part of ``text`` that may be shown; it never holds ESC or any other control but line feed and
        tab.
        """
        if self._state == self._ground and not _CONTROLS.search(text):
            return text
        return "".join([self._state(character) for character in text])

    def _ground(self, character: str) -> str:
        if not _CONTROLS.match(character):
            return character
        if character == "\x1b":
            self._state = self._escape
        elif character == "\x9b":
            self._state = self._control_sequence
        elif character in "\x90\x98\x9d\x9e\x9f":
            self._state = self._string
        return ""

    def _escape(self, character: str) -> str:
        if character == "[":
            self._state = self._control_sequence
        elif character in "]PX^_":
            self._state = self._string
        elif " " <= character <= "/":
            self._state = self._intermediate
        elif "0" <= character <= "~":
            self._state = self._ground
        else:
            return self._again(character)
        return ""

    def _intermediate(self, character: str) -> str:
        if " " <= character <= "/":
            return ""
        if "0" <= character <= "~":
            self._state = self._ground
            return ""
        return self._again(character)

    def _control_sequence(self, character: str) -> str:
        if " " <= character <= "?":
            return ""
        if "@" <= character <= "~":
            self._state = self._ground
            return ""
        return self._again(character)

    def _string(self, character: str) -> str:
        if character == "\x1b":
            self._state = self._escape  # ESC \ ends the string; any other sequence interrupts it
        elif character in "\x07\x9c":
            self._state = self._ground
        elif character == "\n":
            return self._again(character)
        return ""

    def _again(self, character: str) -> str:
        """Handles an interrupted sequence: ``character`` is text or begins another sequence."""
        self._state = self._ground
        return self._ground(character)


def escape_reordering(text: str) -> str:
    """Returns prose with escapes in place of characters that could reorder the text or its line.

    Marks of direction, joiners and tags are kept, because Arabic, Hebrew, Persian and emoji need them.
    """
    return _REORDERING.sub(_escaped, text)


def escape_unseen(text: str) -> str:
    """Returns a name or a message with escapes for all characters that are not drawn: two names that differ look
    different.
    """
    return text if text.isascii() else "".join([_escape_if_unseen(character) for character in text])


def _escape_if_unseen(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN_CATEGORIES and character not in _SEEN_FORMATS:
        return _escape(character)
    return _escape(character) if character in _FILLERS else character


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


def _escaped(match: re.Match[str]) -> str:
    return _escape(match[0])


class Wrapper(Protocol):
    """Breaks the lines of a text that comes in pieces."""

    def feed(self, text: str) -> str:
        """Returns what is to be shown of the text until now."""

    def finish(self) -> str:
        """Returns the rest."""


class AnswerWriter:
    """Writes one answer as it comes and ends it with exactly one line feed.

    On a terminal the text is sanitized, and characters that would reorder it are shown as escapes; elsewhere it is raw.
    ``wrapper`` breaks lines at words, where that is wanted.
    """

    def __init__(self, stream: TextIO, wrapper: Wrapper | None = None) -> None:
        self._text = io.StringIO()
        self._stream = stream
        self._sanitiser = Sanitizer() if is_terminal(stream) else None
        self._wrapper = wrapper
        self._held = ""

    @property
    def text(self) -> str:
        """Returns the whole raw answer."""
        return self._text.getvalue()

    def write(self, text: str) -> None:
        """Shows a piece; line feeds at its end wait until something follows them."""
        self._text.write(text)
        shown = self._held + (escape_reordering(self._sanitiser.feed(text)) if self._sanitiser else text)
        kept = shown.rstrip("\n")
        self._held = shown[len(kept) :]
        if kept:
            self._stream.write(self._wrapper.feed(kept) if self._wrapper else kept)
            self._stream.flush()

    def end(self, ending: str = "") -> None:
        """Ends the answer; ``ending`` is shown after it."""
        rest = self._wrapper.feed(ending) + self._wrapper.finish() if self._wrapper else ending
        self._stream.write(f"{rest}\n")
        self._stream.flush()


class ProgressLine:
    """One line on a terminal's stderr that shows the progress of loading, once it takes long; elsewhere silent."""

    DELAY = 0.3
    """Seconds before the line appears."""
    INTERVAL = 0.1
    """Seconds between two updates."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream if is_terminal(stream) and os.environ.get("TERM") != "dumb" else None
        self._due = time.monotonic() + self.DELAY
        self._shown = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Shows the activity ``what``, and ``done`` of ``total``; a total of 0 is unknown."""
        now = time.monotonic()
        if self._stream is None or now < self._due:
            return
        self._due = now + self.INTERVAL
        self._shown = True
        share = f" {100 * done // total} %" if total else ""
        self._show(f"\r{clean_line(what)}{share}\x1b[K")

    def clear(self) -> None:
        """Removes the line. May be called by a signal's handler, in the midst of a write."""
        if self._stream is not None and self._shown:
            self._show("\r\x1b[K")

    def _show(self, text: str) -> None:
        assert self._stream is not None
        # past the stream's buffer, which a signal's handler may not enter while it is written
        os.write(self._stream.fileno(), text.encode(self._stream.encoding, errors="replace"))


def is_terminal(stream: TextIO) -> bool:
    """Returns whether a person reads or types at the other end."""
    return stream.isatty()


def clean_line(text: str) -> str:
    """Returns text on one line, without controls and invisible characters: it may come from an unchecked file."""
    return " ".join(clean_block(text).split())


def clean_block(text: str) -> str:
    """Returns several lines, each cleaned like ``clean_line``."""
    return escape_unseen(Sanitizer().feed(text))


def print_error(stream: TextIO, error: MistralrsError) -> None:
    """Prints one line with the error and, if there is one, a line with its hint."""
    stream.write(f"error: {clean_line(error.message)}\n")
    if error.hint:
        lines = clean_block(error.hint).splitlines()
        stream.write("hint: " + "\n      ".join(lines) + "\n")
    stream.flush()


def per_second(tokens: float, seconds: float) -> float:
    """Returns a rate; 0 when no time passed."""
    return tokens / seconds if seconds > 0 else 0.0


def generation_rate(usage: Usage) -> float:
    """Returns tokens a second of generation. The first token came with the prompt, so the clock starts there."""
    return per_second(usage.completion_tokens - 1, usage.completion_s)


def stats_line(usage: Usage, context_length: int) -> str:
    """Returns the cost of one answer, on one line."""
    used = usage.prompt_tokens + usage.completion_tokens
    limit = f"/{grouped(context_length)} ({100 * used // context_length} %)" if context_length else ""
    drafts = f"drafts {grouped(usage.accepted_tokens)}/{grouped(usage.drafted_tokens)}"
    return " · ".join(
        (
            f"{grouped(usage.completion_tokens)} tok",
            f"{generation_rate(usage):.1f} tok/s",
            f"first {usage.first_token_s:.1f} s",
            f"cached {grouped(usage.cached_tokens)}/{grouped(usage.prompt_tokens)}",
            *([drafts] if usage.drafted_tokens else []),
            f"context {grouped(used)}{limit}",
            f"seed {usage.seed}",
        )
    )


def grouped(number: int) -> str:
    """Returns a number with its thousands separated."""
    return f"{number:,}".replace(",", " ")


def byte_size(count: int) -> str:
    """Returns bytes in the unit that leaves one to three digits before the point, such as ``91.7 MB``."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
