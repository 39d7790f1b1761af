"""The styles of answers, for dark and for light terminals; the colours are the terminal's own sixteen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.style import Style
from rich.syntax import ANSI_DARK, ANSI_LIGHT, ANSISyntaxTheme


@dataclass(frozen=True, slots=True)
class Theme:
    """The styles of the parts of an answer."""

    heading: Style
    code: Style
    link: Style
    faint: Style
    math: Style
    syntax: ANSISyntaxTheme


_FAINT = Style(dim=True)
THEMES: Mapping[str, Theme] = {
    "dark": Theme(
        heading=Style(bold=True, color="bright_cyan"),
        code=Style(color="bright_yellow"),
        link=Style(underline=True, color="bright_blue"),
        faint=_FAINT,
        math=Style(italic=True),
        syntax=ANSISyntaxTheme(ANSI_DARK),
    ),
    "light": Theme(
        heading=Style(bold=True, color="blue"),
        code=Style(color="magenta"),
        link=Style(underline=True, color="blue"),
        faint=_FAINT,
        math=Style(italic=True),
        syntax=ANSISyntaxTheme(ANSI_LIGHT),
    ),
}
