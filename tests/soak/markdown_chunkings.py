"""Cuts CommonMark's examples at random, as answers that stream; each must end on the screen as the whole does.

    python -m tests.soak.markdown_chunkings [--chunkings 20] [--report FILE]

The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.cli.scrollback import SIZES, Rewritten, chunked, commonmark_examples, shown

SMALL = (20, 6)
"""A terminal that even a short example scrolls."""
EXAMPLES_EACH = 40
"""Examples that make one long answer."""
ABOUT = (
    "`python -m tests.soak.markdown_chunkings` draws the 652 examples of CommonMark's specification, each alone and\n"
    f"in answers of {EXAMPLES_EACH}. Each comes in random pieces of 1 to 40 characters, of which some are drawn at\n"
    "once and some with the next one. A screen with scrollback (pyte) must end as that of the answer in one piece; it\n"
    "refuses moves above its first line, and a line that left it must not change."
)


@dataclass(slots=True)
class Result:
    """The drill of one kind of answer at one size."""

    chunkings: int = 0
    pieces: int = 0
    lines: int = 0
    """Lines of the answers, each counted once."""
    found: list[str] = field(default_factory=list)


def drill(texts: Sequence[str], chunkings: int, *, sizes: Sequence[tuple[int, int]], seed: int) -> dict[str, Result]:
    """Draws each text in so many random chunkings, at the sizes in turns; returns the results by size."""
    results = {f"{columns}x{lines}": Result() for columns, lines in sizes}
    for number, text in enumerate(texts):
        random = Random(f"{seed} {number}")
        wholes: dict[tuple[int, int], list[str]] = {}
        for turn in range(chunkings):
            columns, lines = size = sizes[(turn + number) % len(sizes)]
            result = results[f"{columns}x{lines}"]
            if size not in wholes:
                wholes[size] = shown([text], columns=columns, lines=lines)
                result.lines += len(wholes[size])
            pieces = chunked(random, text)
            result.chunkings += 1
            result.pieces += len(pieces)
            try:
                same = shown(pieces, columns=columns, lines=lines, random=random) == wholes[size]
            except Rewritten as error:
                result.found.append(f"{pieces!r}: {error}")
                continue
            if not same:
                result.found.append(f"{pieces!r} ends in another way")
    return results


def long_answers(examples: Sequence[str], *, seed: int) -> list[str]:
    """Returns answers that have all examples, in a random order."""
    shuffled = list(examples)
    Random(seed).shuffle(shuffled)
    return ["\n\n".join(shuffled[at : at + EXAMPLES_EACH]) for at in range(0, len(shuffled), EXAMPLES_EACH)]


def report(alone: dict[str, Result], together: dict[str, Result], *, seed: int) -> str:
    """Returns the report in Markdown."""
    lines = [
        "# Markdown cut at random",
        "",
        ABOUT,
        "",
        f"Seed {seed}.",
        "",
        "| Answers | Size | Chunkings | Pieces | Lines | Different or rewritten |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, results in (("an example", alone), (f"{EXAMPLES_EACH} examples", together)):
        for size, each in results.items():
            lines.append(
                f"| {kind} | {size} | {each.chunkings} | {each.pieces} | {each.lines} | {len(each.found)} |",
            )
    for results in (alone, together):
        lines += [f"- {size}: {found[:500]}" for size, each in results.items() for found in each.found[:3]]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs all examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunkings", type=int, default=20, help="of each example, and of each long answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    texts = [str(each["markdown"]) for each in commonmark_examples()]
    alone = drill(texts, options.chunkings, sizes=[*SIZES, SMALL], seed=options.seed)
    long = long_answers(texts, seed=options.seed)
    together = drill(long, options.chunkings, sizes=SIZES, seed=options.seed)
    text = report(alone, together, seed=options.seed)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return int(any(each.found for results in (alone, together) for each in results.values()))


if __name__ == "__main__":
    sys.exit(main())
