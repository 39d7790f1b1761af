"""Draws `docs/pictures/*.svg`: screens of the program with the default model, from a real session in a terminal.

A shell runs on a pseudo terminal, and pyte draws its output. `make screens` draws the pictures anew.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
COLUMNS = 80
PATIENCE_S = 30.0
PROMPT = "$ "

_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's format without its fonts, which are at addresses of the web."""


@dataclass(frozen=True)
class Scene:
    """A session that ends with the screen that is drawn."""

    name: str
    """The file's, without its ending."""
    title: str
    lines: int
    steps: Sequence[tuple[str, str]]
    """What is typed, each time with Enter, and a text in the output that then shows that it is done."""
    expected: Sequence[str]
    """Texts of the last screen."""


SCENES = (
    Scene(
        "chat",
        "A chat",
        30,
        (
            ("mistralrs -i --temperature 0", "/help"),
            ("Write a Python function that says whether a number is even.", "context"),
            ("List three uses of a Raspberry Pi, with the name of each in bold.", "context"),
        ),
        ("135M", "Raspberry", "def ", "context "),
    ),
    Scene(
        "pipe",
        "Pipes",
        18,
        (
            ('mistralrs --prompt "What is the capital of France?"', "Paris"),
            ('echo "The soup was cold." > review.txt', ""),
            ('mistralrs --prompt "Is this praise?" --choice yes --choice no < review.txt', "no|yes"),
            ("mistralrs --prompt 'In which year did Apollo 11 land?' --regex '[0-9]{4}'", r"\d{4}"),
            ("git --version | mistralrs --prompt 'What is this?' 2>/dev/null | head -c 300", " "),
        ),
        ("Paris.", "no", "1969"),
    ),
    Scene(
        "first-start",
        "The first start",
        16,
        (
            ("mistralrs", "Chat with which?"),
            ("", "/help"),
            ("What is the capital of France?", "context"),
        ),
        ("Models on this machine", "recommended", "/help", "Paris"),
    ),
)


class AnsweringScreen(pyte.Screen):
    """A screen that answers queries such as that of the cursor's position."""

    answer: Callable[[str], object] | None = None

    def write_process_input(self, data: str) -> None:
        """Sends an answer to the program."""
        if self.answer is not None:
            self.answer(data)


class Session:
    """A shell on a pseudo terminal of ``lines`` lines, and the screen that it draws."""

    def __init__(self, environment: Mapping[str, str], folder: Path, *, lines: int) -> None:
        self.screen = AnsweringScreen(COLUMNS, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._child = pexpect.spawn(
            "/bin/bash",
            ["--noprofile", "--norc"],
            env=dict(environment),
            cwd=str(folder),
            dimensions=(lines, COLUMNS),
        )
        self._child.delaybeforesend = None
        self.screen.answer = self._child.send

    def close(self) -> None:
        self._child.close(force=True)

    def type(self, text: str) -> None:
        """Types a line."""
        self._child.send(text + "\r")

    def wait(self, is_done: Callable[[str], bool]) -> str:
        """Returns the text of the screen once it is as wanted. Raises ``TimeoutError`` with the screen."""
        end = time.monotonic() + PATIENCE_S
        while not is_done(self.text()):
            if time.monotonic() > end:
                raise TimeoutError(self.text())
            try:
                self._stream.feed(self._child.read_nonblocking(65536, timeout=0.1))
            except pexpect.TIMEOUT:
                continue
        return self.text()

    def text(self) -> str:
        """Returns the screen's text, without the blank at the ends of lines and below."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()


def record(scene: Scene) -> pyte.Screen:
    """Plays a scene as a new user, and returns its last screen. Raises ``TimeoutError`` where a text does not come."""
    with TemporaryDirectory() as home:
        environment = {
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin")),
            "HOME": home,
            "PS1": PROMPT,
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "HF_HUB_OFFLINE": "1",
            "MISTRALRS_CONFIG": os.devnull,
            "MISTRALRS_DEFAULT_MODEL": str(MODEL),
        }
        session = Session(environment, Path(home), lines=scene.lines)
        try:
            session.wait(lambda text: text == PROMPT.rstrip())
            for typed, shown in scene.steps:
                session.type(typed)
                session.wait(functools.partial(is_done, typed=typed, shown=shown))
            return session.screen
        finally:
            session.close()


def is_done(text: str, *, typed: str, shown: str) -> bool:
    """Returns whether the screen shows a text behind the line that was typed, and waits for another line."""
    _, found, after = text.rpartition(typed[: COLUMNS // 2]) if typed else ("", "", text)
    if typed and not found:
        return False
    waits = re.search(r"\n(\$|> {9,}\S.*|Chat with which.*)$", after)
    return waits is not None and re.search(shown, after) is not None


_NAMES = {"bfightmagenta": "bright_magenta"}
"""A colour that pyte misspells."""


def styled(screen: pyte.Screen) -> Text:
    """Returns a screen's lines with their colours, without blank lines at the end."""
    last = max(number for number, line in enumerate(screen.display) if line.strip())
    whole = Text()
    for number in range(last + 1):
        cells = [screen.buffer[number][column] for column in range(screen.columns)]
        for style, run in itertools.groupby(cells, style_of):
            whole.append("".join(cell.data for cell in run), style)
        whole.append("\n")
    return whole


def style_of(cell: pyte.screens.Char) -> Style:
    """Returns a cell's colours and face."""
    return Style(
        color=colour(cell.fg),
        bgcolor=colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def colour(name: str) -> str:
    """Returns Rich's name of one of pyte's colours, which are names or six hexadecimal digits."""
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    plain = _NAMES.get(name, name)
    return re.sub("^bright(?!_)", "bright_", plain).replace("brown", "yellow")


def picture(screen: pyte.Screen, scene: Scene) -> str:
    """Returns a screen as SVG, without any address but that of the namespace."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(styled(screen), end="", overflow="ignore", crop=False)
    return console.export_svg(title=scene.title, theme=SVG_EXPORT_THEME, code_format=_SVG, unique_id=scene.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(scene.name for scene in SCENES)}; all without")
    parser.add_argument("--out", type=Path, default=PICTURES, help="the folder")
    arguments = parser.parse_args()
    for scene in SCENES:
        if not arguments.names or scene.name in arguments.names:
            screen = record(scene)
            missing = [text for text in scene.expected if text not in "\n".join(screen.display)]
            if missing:
                sys.exit(f"{scene.name}: the last screen lacks {missing}:\n" + "\n".join(screen.display))
            (arguments.out / f"{scene.name}.svg").write_text(picture(screen, scene), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
