"""Measures what drawing a long answer costs, and how long its text waits: `python -m benchmarks.rendering`.

The answers come at a fixed pace by a clock that is set forward with each token, so that ten thousand lines take
seconds; what drawing takes is the processor's time. Each kind has a process of its own, whose memory is measured too.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from mistralrs_cli.markdown_screen.answer_display import MarkdownWriter, Pace

CHARACTERS = 4
"""Of a token."""
_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "**lazy**",
    "dog",
    "while",
    "`code`",
    "and",
    "[links](https://example.org)",
    "go",
    "on",
]


def _prose(number: int) -> str:
    words = itertools.islice(itertools.cycle(_WORDS), number % 7, number % 7 + 12)
    return " ".join(words) + ("\n\n" if number % 6 == 5 else "\n")


KINDS: dict[str, Callable[[int], str]] = {
    "prose": _prose,
    "prose without blank lines": lambda number: _prose(number).rstrip("\n") + "\n",
    "code": lambda number: (
        ("```python\n" if number == 0 else "") + f"    value_{number} = compute({number}, 'text')  # why\n"
    ),
    "a list": lambda number: f"{number + 1}. an item with some **words** that say a little\n",
    "a table": lambda number: (
        ("| a | b | c |\n|---|--:|---|\n" if number == 0 else "") + f"| cell {number} | {number} | some `more` text |\n"
    ),
    "a quotation": lambda number: "> " + _prose(number).rstrip("\n") + ("\n>\n" if number % 6 == 5 else "\n"),
    "a list in a list": lambda number: ("- outer\n" if number == 0 else "") + f"  - an item {number} with **words**\n",
    "a quotation of one paragraph": lambda number: "> " + _prose(number).rstrip("\n") + "\n",
    "an item of paragraphs": lambda number: (
        ("1. " if number == 0 else "   ") + _prose(number).rstrip("\n") + ("\n\n" if number % 6 == 5 else "\n")
    ),
    "an item with code": lambda number: (
        ("- item:\n  ```python\n" if number == 0 else "") + f"      value_{number} = compute({number}, 'text')  # why\n"
    ),
    "HTML": lambda number: ("<pre>\n" if number == 0 else "") + f"<p>line {number} of a page in <b>HTML</b></p>\n",
    "code without a fence": lambda number: f"        value_{number} = compute({number}, 'text')  # why\n",
    "Chinese": lambda number: (
        f"第{number}行：大型语言模型在终端里的回答应当按显示宽度换行，而且不闪烁。🎉\n"
        + ("\n" if number % 4 == 3 else "")
    ),
}
"""The lines of an answer, by their number."""


@dataclass(frozen=True)
class Result:
    """One kind of answer."""

    tokens: int
    cpu_share: float
    """Processor time over the time that the answer takes."""
    wait_ms: tuple[float, float, float]
    """From a token's coming to its being drawn: median, 99th percentile, longest."""
    end_ms: float
    """Of the last drawing, after the last token."""
    memory_mb: float
    """Growth of the process beyond the answer's own text."""
    written_mb: float
    """Output to the terminal."""


class _Count(io.StringIO):
    """A terminal that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = 0
        self.writes = 0

    def write(self, text: str) -> int:
        self.characters += len(text)
        self.writes += 1
        return len(text)


def tokens_of(kind: str, lines: int) -> Iterator[str]:
    """Yields the answer in tokens of four characters."""
    for number in range(lines):
        line = KINDS[kind](number)
        for at in range(0, len(line), CHARACTERS):
            yield line[at : at + CHARACTERS]


def measure(kind: str, *, lines: int, rate: float, size: tuple[int, int]) -> Result:
    """Draws one answer."""
    now = 0.0
    terminal = _Count()
    writer = MarkdownWriter(terminal, theme="dark", has_links=False, pace=Pace(clock=lambda: now), size=lambda: size)
    for text in ("# a\n\n```python\nx = 1\n```\n\n| a |\n|---|\n| b |\n\n- c\n",):  # imports happen before
        MarkdownWriter(_Count(), theme="dark", has_links=False, size=lambda: size).write(text)
    time.sleep(0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    waiting: list[float] = []
    waits: list[float] = []
    count = characters = 0
    cpu = 0.0
    for token in tokens_of(kind, lines):
        now += 1 / rate
        count += 1
        characters += len(token)
        waiting.append(now)
        writes, begun = terminal.writes, time.thread_time()
        writer.write(token)
        cpu += time.thread_time() - begun
        if terminal.writes > writes:
            waits += [now - each for each in waiting]
            waiting.clear()
    begun = time.thread_time()
    writer.end()
    end = time.thread_time() - begun
    waits += [now - each for each in waiting]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    percentiles = statistics.quantiles(waits, n=100)
    return Result(
        tokens=count,
        cpu_share=(cpu + end) / now,
        wait_ms=(1000 * statistics.median(waits), 1000 * percentiles[98], 1000 * max(waits)),
        end_ms=1000 * end,
        memory_mb=(grown * 1024 - characters) / 1e6,
        written_mb=terminal.characters / 1e6,
    )


def main() -> int:
    """Measures all kinds, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=100.0, help="tokens a second")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--height", type=int, default=24)
    parser.add_argument("--kind", choices=list(KINDS), help="only this kind, as JSON")
    options = parser.parse_args()
    if options.kind:
        size = (options.columns, options.height)
        print(json.dumps(asdict(measure(options.kind, lines=options.lines, rate=options.rate, size=size))))
        return 0
    print(f"{options.lines} lines at {options.rate:g} tokens/s on {options.columns}x{options.height}\n")
    print("| Answer | Tokens | Core | Wait: median, 99 %, longest | Last drawing | Memory | Output |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        words = ["--lines", str(options.lines), "--rate", str(options.rate), "--kind", kind]
        words += ["--columns", str(options.columns), "--height", str(options.height)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.rendering", *words], check=True, stdout=subprocess.PIPE, text=True
        )
        each = json.loads(done.stdout)
        median, late, longest = each["wait_ms"]
        print(
            f"| {kind} | {each['tokens']} | {100 * each['cpu_share']:.1f} % "
            f"| {median:.0f}, {late:.0f}, {longest:.0f} ms "
            f"| {each['end_ms']:.0f} ms | {each['memory_mb']:.1f} MB | {each['written_mb']:.1f} MB |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
