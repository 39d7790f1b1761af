"""Cuts answers of every shipped format at random; the parts of each must be those that transformers finds.

    python -m tests.soak.response_chunkings [--count 10000] [--report FILE]

The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from random import Random

from mistralrs.errors import MistralrsError
from mistralrs.text.response.response_template import ResponseTemplate
from mistralrs.text.response.shipped_templates import shipped_template
from tests.text.response_scripts import (
    FORMATS,
    Message,
    declaration,
    parsed,
    random_cuts,
    reference,
    tools_for,
    with_values,
)

CUTS = 20
"""Chunkings of each answer."""
ABOUT = (
    "`python -m tests.soak.response_chunkings` writes answers in the format of every shipped response template, with\n"
    "thoughts, text, parallel calls, nested arguments, escapes and Unicode, and cuts each at random places. Content\n"
    "and reasoning may have no marker in them, and all arguments have to be JSON."
)


@dataclass(slots=True)
class Result:
    """The drill of one format."""

    answers: int = 0
    chunkings: int = 0
    parts: int = 0
    calls: int = 0
    thoughts: int = 0
    seconds: float = 0.0
    """Time of our parser."""
    found: list[str] = field(default_factory=list)


def drill(name: str, count: int, *, seed: int) -> Result:
    """``count`` chunkings of random answers in the format of this name."""
    form, template, result = FORMATS[name], shipped_template(name), Result()
    random = Random(f"{seed} {name}")
    while result.chunkings < count:
        text = form.spell(random)
        tools = tools_for(random, template)
        expected = reference(declaration(name), text, prompt=form.prompt, tools=tools)
        result.answers += 1
        result.calls += len(expected.calls)
        result.thoughts += bool(expected.reasoning)
        for _ in range(min(CUTS, count - result.chunkings)):
            parts = random_cuts(random, text)
            result.chunkings += 1
            result.parts += len(parts)
            started = time.perf_counter()
            try:
                message = parsed(template, parts, prompt=form.prompt, tools=tools)
            except (AssertionError, MistralrsError) as error:
                result.found.append(f"{parts!r}: {error}")
                continue
            finally:
                result.seconds += time.perf_counter() - started
            if wrong := _difference(message, expected, template):
                result.found.append(f"{parts!r}: {wrong}")
    return result


def _difference(message: Message, expected: Message, template: ResponseTemplate) -> str | None:
    shown = message.content + message.reasoning
    if any(marker in shown for marker in template.markers if marker[0] + marker[-1] in ("<>", "[]")):
        return f"a marker is in {shown!r}"
    try:
        valued = with_values(message)
    except ValueError:
        return f"the arguments of {message.calls!r} are no JSON"
    return None if valued == expected else f"{valued!r} is not {expected!r}"


def report(results: dict[str, Result], *, seed: int) -> str:
    """The report in Markdown."""
    lines = [
        "# Answers cut at random",
        "",
        ABOUT,
        f"Expected parts are those of transformers {version('transformers')} for the whole text.",
        "",
        f"Seed {seed}.",
        "",
        "| Format | Answers | With thoughts | Calls | Chunkings | Parts | Different | µs a part |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, each in results.items():
        pace = 1e6 * each.seconds / max(each.parts, 1)
        counts = f"{each.answers} | {each.thoughts} | {each.calls} | {each.chunkings} | {each.parts}"
        lines.append(f"| `{name}` | {counts} | {len(each.found)} | {pace:.0f} |")
    for name, each in results.items():
        lines += [f"- `{name}`: {found[:500]}" for found in each.found[:3]]
    return "\n".join(lines) + "\n"


def run(names: Iterable[str], count: int, *, seed: int) -> dict[str, Result]:
    """The drills of these formats."""
    return {name: drill(name, count, seed=seed) for name in names}


def main() -> int:
    """Runs all formats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="chunkings of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    results = run(FORMATS, options.count, seed=options.seed)
    text = report(results, seed=options.seed)
    print(text)
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return int(any(each.found for each in results.values()))


if __name__ == "__main__":
    sys.exit(main())
