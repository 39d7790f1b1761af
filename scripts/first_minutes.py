"""Writes `docs/reports/first-minutes.md`: the screens of a new user's first minutes, from a clone on, in tmux.

Clones the committed state of this repository into an empty folder and does there what the README says. Data, settings
and models are under that folder, so that nothing of this user is seen or changed. Takes as long as the set-up does.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "reports" / "first-minutes.md"
COLUMNS, LINES = 80, 24
SHELL, CHAT = r"^(\(\.venv\) )?\$$", r"^>( {3,}\S.*)?$"
"""The last line of a screen on which the shell, or the chat, waits."""
CTRL_D = "C-d"
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Step:
    """Something typed, and the screen after it."""

    title: str
    typed: str
    """The line, which Enter ends; ``CTRL_D`` is that key."""
    until: str = SHELL
    """A pattern of the last line when it is done."""
    patience_s: float = PATIENCE_S
    every_s: float = 0
    """Seconds between screens that are kept meanwhile; 0: only the last screen is kept."""


STEPS = (
    Step("The clone", "git clone source mistralrs && cd mistralrs"),
    Step("The list of commands", "make"),
    Step("The set-up, which ends in the chat", "make chat", CHAT, 1200, 45),
    Step("A question", "What is the capital of France?", CHAT),
    Step("Code", "Write a Python function that says whether a number is even.", CHAT),
    Step("The numbers of the answer", "/stats", CHAT),
    Step("Another answer", "/retry", CHAT),
    Step("The branches", "/tree", CHAT),
    Step("Help for one command", "/help retry", CHAT),
    Step("A mistake", "/hlep", CHAT),
    Step("Leaving", CTRL_D),
    Step("The chat again, at once", "make chat", CHAT),
    Step("The saved chats", "/sessions", CHAT),
    Step("Leaving again", CTRL_D),
    Step("The command itself", ". .venv/bin/activate && clear"),
    Step("The models on this machine", "mistralrs", r"^Chat with which\?.*"),
    Step("No chat now", "q"),
    Step("One answer", 'mistralrs --prompt "What is the capital of Spain?" 2>/dev/null'),
    Step("A pipe", 'git log -1 --format=%s | mistralrs --prompt "Say this in French." 2>/dev/null'),
    Step("A mistake on the command line", "mistralrs --promt hi"),
    Step("The machine", "clear; mistralrs doctor"),
)


class Tmux:
    """A terminal in a server of tmux of its own, whose socket is in ``folder``; its shell shows its prompt.

    Raises ``TimeoutError`` with the screen where the shell has no prompt after ``PATIENCE_S``.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._call("new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "bash", "--noprofile", "--norc")
        try:
            self._wait_for_shell()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._call("kill-server")

    def type(self, text: str) -> None:
        """Types a line, or presses a key."""
        if text == CTRL_D:
            self._call("send-keys", CTRL_D)
        else:
            self._call("send-keys", "-l", text)
            self._call("send-keys", "Enter")

    def screen(self) -> str:
        """Returns the text of the screen, without the blank at the ends of lines and below."""
        return "\n".join(line.rstrip() for line in self._call("capture-pane", "-p").splitlines()).rstrip()

    def _wait_for_shell(self) -> None:
        # keys that come earlier are shown twice: by the terminal, and by the shell behind its prompt
        ends = time.monotonic() + PATIENCE_S
        while not re.search(SHELL, last_line(screen := self.screen())):
            if time.monotonic() > ends:
                raise TimeoutError(f"The shell shows no prompt; the screen:\n{screen}")
            time.sleep(0.05)

    def _call(self, *words: str) -> str:
        command = ["tmux", "-S", str(self._folder / "tmux"), "-f", os.devnull, *words]
        return subprocess.run(
            command, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout


def last_line(screen: str) -> str:
    return screen.rpartition("\n")[2]


def play(tmux: Tmux, step: Step) -> list[tuple[float, str]]:
    """Returns screens of a step, each with the seconds since it began. Raises ``TimeoutError`` with the last one."""
    before = tmux.screen()
    tmux.type(step.typed)
    began, kept = time.monotonic(), []
    while True:
        time.sleep(0.7)
        took, screen = time.monotonic() - began, tmux.screen()
        # a shell that has not read the keys yet shows the prompt that they were typed at
        if screen != before and re.search(step.until, last_line(screen)) and took > 1:
            return [*kept, (took, screen)]
        if took > step.patience_s:
            raise TimeoutError(f"{step.title}:\n{screen}")
        if step.every_s and took > step.every_s * (len(kept) + 1):
            kept.append((took, screen))


def cleaned(screen: str, places: Mapping[str, str]) -> str:
    """Returns a screen without what belongs to this machine: its folders, its addresses and its name."""
    for place, shown in places.items():
        screen = screen.replace(place, shown)
    screen = re.sub(r"(https?|file)://(?!127\.0\.0\.1)\S+", "ADDRESS", screen)
    screen = re.sub(r"(Looking in (?:indexes|links): ).*(?:\n(?!\S+ ).*)?", r"\1ADDRESS", screen)
    screen = re.sub(r"(?<![\w.~/])/(?:[\w.+-]+/){2,}", ".../", screen)
    screen = re.sub(r"Linux [\d.]\S* on", "Linux on", screen)
    return screen.replace(os.uname().nodename, "HOST")


def report(folder: Path, source: Path, steps: Sequence[Step]) -> list[str]:
    """Plays the steps in an empty folder, with a clone of the repository ``source``; returns the report's lines."""
    (folder / "source").symlink_to(source)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("VIRTUAL_ENV", "TMUX", "MAKEFLAGS", "MAKELEVEL")
    }
    own = {
        name: str(folder / "user" / name) for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME")
    }
    kept |= own | {"PS1": "$ ", "TERM": "xterm-256color", "LANG": "C.UTF-8", "MISTRALRS_CONFIG": os.devnull}
    places = {str(folder): "~", str(Path.home()): "~", str(source): "~/source"}
    lines = [
        "# The first minutes",
        "",
        f"The screens of a new user in a terminal of {COLUMNS} x {LINES} (tmux), from a clone on.",
        "`make first-minutes` makes this page again; folders and addresses are left out. Each screen has the",
        "seconds since its line was typed.",
        "",
    ]
    tmux = Tmux(folder, {name: value for name, value in kept.items() if not name.startswith("MISTRALRS_DEFAULT")})
    began = time.monotonic()
    try:
        for step in steps:
            typed = "Ctrl-D" if step.typed == CTRL_D else step.typed
            lines += [f"## {step.title}", "", f"Typed after {time.monotonic() - began:.0f} s: `{typed}`", ""]
            for took, screen in play(tmux, step):
                lines += [f"### {took:.0f} s", "", "```text", cleaned(screen, places), "```", ""]
    finally:
        tmux.close()
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT, help="the repository that is cloned")
    parser.add_argument("--out", type=Path, default=REPORT)
    arguments = parser.parse_args()
    if shutil.which("tmux") is None:
        sys.exit("tmux was not found. Install it (for example: apt-get install tmux)")
    with TemporaryDirectory() as folder:
        lines = report(Path(folder), arguments.source.resolve(), STEPS)
        arguments.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        sys.stderr.write(f"written: {shlex.quote(str(arguments.out))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
