"""Chooses how answers look on a stream, and writes them: Markdown on a terminal with colours, else the text."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from mistralrs_cli.terminal.output import AnswerWriter, Sanitizer, Wrapper, escape_reordering, is_terminal

if TYPE_CHECKING:
    from mistralrs_cli.markdown_blocks.block_stream import BlockStream
    from mistralrs_cli.markdown_screen.live_region import LiveRegion

ThemeName = Literal["auto", "light", "dark"]
ColorName = Literal["auto", "always", "never"]
_LINKING_PROGRAMS = frozenset({"iTerm.app", "WezTerm", "vscode", "ghostty", "Hyper", "Tabby", "rio"})
_LINKING_TERMS = ("xterm-kitty", "alacritty", "foot", "contour", "xterm-ghostty", "wezterm")
_LINKING_VARIABLES = ("WT_SESSION", "KONSOLE_VERSION", "KITTY_WINDOW_ID", "DOMTERM")


@dataclass(frozen=True, slots=True)
class Look:
    """The look of answers that the user chose."""

    plain: bool = False
    theme: ThemeName = "auto"
    color: ColorName = "auto"


AUTOMATIC = Look()


class Writer(Protocol):
    """Writes one answer as it comes and ends it with one line feed."""

    @property
    def text(self) -> str:
        """Returns the whole raw answer."""

    def write(self, text: str) -> None:
        """Shows a piece."""

    def end(self, ending: str = "") -> None:
        """Ends the answer; ``ending`` is shown after it."""


def open_writer(stream: TextIO, look: Look) -> Writer:
    """Returns the writer of one answer."""
    if draws_markdown(stream, look, os.environ):
        is_live = is_terminal(stream) and not is_dumb(os.environ)
        has_links = is_live and knows_links(os.environ)
        return MarkdownWriter(stream, theme=theme_of(look, os.environ), has_links=has_links, is_live=is_live)
    return AnswerWriter(stream, text_wrapper(stream) if is_terminal(stream) else None)


def text_wrapper(stream: TextIO) -> Wrapper:
    """Returns a wrapper of text at the width of a terminal; its last column stays free."""
    from mistralrs_cli.markdown_screen.word_wrap import TextWrapper

    return TextWrapper(lambda: terminal_size(stream)[0] - 1)


def draws_markdown(stream: TextIO, look: Look, environment: Mapping[str, str]) -> bool:
    """Returns whether answers on the stream are drawn: on a terminal with colours, unless something else is chosen.

    The option is stronger than ``NO_COLOR``, and that than ``CLICOLOR_FORCE``.
    """
    if look.plain or look.color == "never":
        return False
    if look.color == "always":
        return True
    if environment.get("NO_COLOR"):
        return False
    if environment.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return is_terminal(stream) and not is_dumb(environment)


def is_dumb(environment: Mapping[str, str]) -> bool:
    """Returns whether the terminal moves no cursor and has no colours."""
    return environment.get("TERM", "") in ("", "dumb", "unknown")


def theme_of(look: Look, environment: Mapping[str, str]) -> str:
    """Returns ``light`` or ``dark``; a terminal that names its background in ``COLORFGBG`` decides for ``auto``."""
    if look.theme != "auto":
        return look.theme
    background = environment.get("COLORFGBG", "").rpartition(";")[2]
    return "light" if background in ("7", "15") else "dark"


def knows_links(environment: Mapping[str, str]) -> bool:
    """Returns whether the terminal is one of those that show links (OSC 8)."""
    vte = environment.get("VTE_VERSION", "")
    return (
        environment.get("TERM_PROGRAM") in _LINKING_PROGRAMS
        or environment.get("TERM", "").startswith(_LINKING_TERMS)
        or any(name in environment for name in _LINKING_VARIABLES)
        or (vte.isdecimal() and int(vte) >= 5000)
    )


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Returns the columns and lines of a terminal; 80 x 24 where it does not say."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        size = shutil.get_terminal_size()
    return size.columns or 80, size.lines or 24


class Pace:
    """Bounds the time that drawing takes: a share of the time that passes, and a short burst at once."""

    SHARE = 0.015
    BURST_S = 0.03

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cost: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._cost = clock, cost
        self._credit = self.BURST_S
        self._at = clock()

    def allows(self) -> bool:
        """Returns whether something may be drawn now."""
        now = self._clock()
        self._credit = min(self.BURST_S, self._credit + self.SHARE * (now - self._at))
        self._at = now
        return self._credit > 0

    def run(self, draw: Callable[[], None]) -> None:
        """Draws, and takes the time into account."""
        begun = self._cost()
        draw()
        self._credit -= self._cost() - begun


class MarkdownWriter:
    """Draws one answer on a terminal while it comes.

    The libraries for it are imported meanwhile in another thread, so that the first token need not wait for them.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        theme: str,
        has_links: bool,
        is_live: bool = True,
        pace: Pace | None = None,
        size: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        """``is_live``: what may still change is shown too, for which the cursor moves. ``size``: returns the columns
        and lines of the terminal; None: those of the stream."""
        self._text = io.StringIO()
        self._is_live = is_live
        self._size = size or (lambda: terminal_size(stream))
        self._stream, self._theme, self._has_links = stream, theme, has_links
        self._sanitizer = Sanitizer()
        self._held = ""
        """Line feeds that wait until something follows them."""
        self._pace = pace or Pace()
        self._parts: tuple[BlockStream, LiveRegion] | None = None
        threading.Thread(target=_import_parts, daemon=True).start()

    @property
    def text(self) -> str:
        """Returns the whole raw answer."""
        return self._text.getvalue()

    def write(self, text: str) -> None:
        """Shows a piece, or leaves it to the next one if the last was drawn just now."""
        self._text.write(text)
        shown = self._held + escape_reordering(self._sanitizer.feed(text))
        kept = shown.rstrip("\n")
        self._held = shown[len(kept) :]
        if kept:
            blocks, _ = self._opened()
            blocks.feed(kept)
            if self._pace.allows():
                self._pace.run(self._draw)

    def end(self, ending: str = "") -> None:
        """Shows the rest; ``ending`` is shown after it."""
        if self._parts is not None:
            blocks, region = self._parts
            region.draw(blocks.take_final(self._width(), ends=True), [])
        self._stream.write(f"{ending}\n")
        self._stream.flush()

    def _draw(self) -> None:
        blocks, region = self._opened()
        width = self._width()
        final = blocks.take_final(width)
        region.draw(final, blocks.open_lines(width) if self._is_live else [])

    def _width(self) -> int:
        """Returns the cells of a line: the last column stays free, where terminals differ in how they wrap."""
        return max(2, self._size()[0] - 1)

    def _opened(self) -> tuple[BlockStream, LiveRegion]:
        if self._parts is None:
            from mistralrs_cli.markdown_blocks.block_stream import BlockStream
            from mistralrs_cli.markdown_screen.live_region import LiveRegion
            from mistralrs_cli.markdown_screen.theme import THEMES

            blocks = BlockStream(THEMES[self._theme], has_links=self._has_links)
            self._parts = blocks, LiveRegion(self._stream, self._size)
        return self._parts


def _import_parts() -> None:
    import mistralrs_cli.markdown_blocks.block_stream
    import mistralrs_cli.markdown_screen.live_region  # noqa: F401
