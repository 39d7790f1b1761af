"""The speed gate: finds out whether prefill, decode or start of a commit is more than 5 % slower than another's.

    python -m benchmarks.gate BASE [HEAD] [--model MODEL.gguf] [--rounds 5] [--report FILE]

Builds both commits in a temporary folder, with the third-party packages of the Python that runs this, and runs them in
turns, a process for each figure. Exits with 1 if something fell, else with 0; a figure whose spread is larger than its
difference is called inconclusive, and calls for more rounds or a quieter machine. Run it from the project's root.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from benchmarks.start import seconds

ROOT = Path(__file__).parents[1]
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
KERNEL_SOURCES = ("CMakeLists.txt", "kernels/csrc")
INSTALLED = Path("kernels") / "mistralrs_kernels"
"""The folder of the built kernels in the sources."""
ALLOWED_FALL = 0.05
LEAST_ROUNDS = 5
LEAST_CONFIDENCE = 0.9
PROMPT = "What is the capital of France?"
UNITS = {"prefill": "tokens/s", "decode": "tokens/s", "start": "s"}
"""The unit of each figure. Start is from process start to the first token of a one-shot prompt."""

Verdict = Literal["holds", "fell", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of both commits: ``base`` and ``head`` have a value for each round, in the figure's unit."""

    name: str
    base: tuple[float, ...]
    head: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Returns the speed of head relative to base, of the medians; below 1: head is slower."""
        return self._speed(statistics.median(self.base), statistics.median(self.head))

    @property
    def interval(self) -> tuple[float, float, float]:
        """Returns the bounds of the ratio, least and most, and their confidence (0 to 1)."""
        return median_interval([self._speed(*pair) for pair in zip(self.base, self.head, strict=True)])

    @property
    def verdict(self) -> Verdict:
        """Returns ``fell`` or ``holds``, and ``inconclusive`` if the spread of the rounds reaches both."""
        least, most, _ = self.interval
        if self.ratio < 1 - ALLOWED_FALL:
            return "fell" if most < 1 else "inconclusive"
        return "holds" if least >= 1 - ALLOWED_FALL else "inconclusive"

    def _speed(self, base: float, head: float) -> float:
        return base / head if UNITS[self.name] == "s" else head / base


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the narrowest pair of the sorted values around the median with 90 % confidence, and its confidence.

    It assumes nothing of how the values are distributed: each lies below the median with a chance of one half. Fewer
    than five values give the least and the largest, with less confidence.
    """
    ordered, count = sorted(values), len(values)
    narrowest = (ordered[0], ordered[-1], 1 - 2 * 0.5**count)
    for left_out in range(1, (count + 1) // 2):
        confidence = 1 - 2 * sum(math.comb(count, below) for below in range(left_out + 1)) / 2**count
        if confidence < LEAST_CONFIDENCE:
            break
        narrowest = (ordered[left_out], ordered[-1 - left_out], confidence)
    return narrowest


@dataclass(frozen=True, slots=True)
class Commit:
    """A checked-out commit, and the Python that runs it."""

    name: str
    subject: str
    sources: Path
    python: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The circumstances of a measurement, without paths."""

    model: str
    processor: str
    isa: str
    threads: int
    cores: int
    load: float
    """Processes that waited for a core in the minute before the measurement, by the system's average."""
    versions: str


def report(base: Commit, head: Commit, *, comparisons: Sequence[Comparison], conditions: Conditions) -> str:
    """Returns the report in Markdown."""
    lines = [
        "# Speed gate",
        "",
        f"- base: {base.name} {base.subject}",
        f"- head: {head.name} {head.subject}",
        f"- model: {conditions.model}",
        f"- processor: {conditions.processor}; {conditions.isa} kernels, {conditions.threads} threads",
        f"- machine: {conditions.cores} cores, load {conditions.load:.1f} before; {conditions.versions}",
        "",
        f"Medians of {len(comparisons[0].base)} rounds in turns. The ratio is head's speed relative to base's; "
        f"it may fall by {ALLOWED_FALL:.0%}.",
        "",
        "| | base | head | ratio | between | sure | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(comparison) for comparison in comparisons),
    ]
    return "\n".join(lines) + "\n"


def _row(comparison: Comparison) -> str:
    least, most, confidence = comparison.interval
    base, head = (f"{statistics.median(side):.4g}" for side in (comparison.base, comparison.head))
    return (
        f"| {comparison.name}, {UNITS[comparison.name]} | {base} | {head} | {comparison.ratio:.3f} "
        f"| {least:.3f} and {most:.3f} | {confidence:.0%} | {comparison.verdict} |"
    )


def third_party(path: Sequence[str]) -> list[str]:
    """Returns the folders of ``path`` that packages are installed in."""
    return [folder for folder in path if Path(folder).name in ("site-packages", "dist-packages")]


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Commit]:
    """Checks a commit out into a worktree in ``folder`` with a virtual environment; its kernels are not built yet."""
    name, _, subject = _git("log", "-1", "--format=%h %s", revision, "--").partition(" ")
    sources, environment = folder / "sources", folder / "environment"
    _git("worktree", "add", "--quiet", "--detach", str(sources), name)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        (packages,) = environment.glob("lib/python*/site-packages")
        folders = [str(sources), str(sources / "kernels"), *third_party(sys.path)]
        (packages / "gate.pth").write_text("\n".join(folders) + "\n", encoding="utf-8")
        yield Commit(name, subject, sources, environment / "bin" / "python")
    finally:
        _git("worktree", "remove", "--force", str(sources))


def build_both(commits: Sequence[Commit], folder: Path) -> None:
    """Builds the kernels of both commits, or those of the first for both where their sources are the same."""
    base, head = commits
    build(base.sources, folder / "base-build")
    if _git("diff", "--name-only", base.name, head.name, "--", *KERNEL_SOURCES):
        build(head.sources, folder / "head-build")
        return
    print("the kernels are the same: they are built once", file=sys.stderr)
    for library in (base.sources / INSTALLED).glob("lib*"):
        shutil.copy2(library, head.sources / INSTALLED)


def build(sources: Path, folder: Path) -> None:
    """Builds the kernels of ``sources`` in ``folder`` and installs them beside their Python package."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        ["cmake", *generator, "-DCMAKE_BUILD_TYPE=Release", "-S", str(sources), "-B", str(folder)],
        ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)],
        ["cmake", "--install", str(folder), "--prefix", str(sources / "kernels")],
    ):
        subprocess.run(command, check=True, stdout=sys.stderr)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The work that both commits do: sizes in tokens; ``threads`` of None is the program's own choice."""

    model: Path
    prompt: int
    generate: int
    repetitions: int
    threads: int | None

    def figures(self, commit: Commit) -> dict[str, float]:
        """Returns the figures of one round."""
        record = self.bench(commit)
        return {
            "prefill": record[f"pp{self.prompt}"]["tok_s_median"],
            "decode": record[f"tg{self.generate}"]["tok_s_median"],
            "start": seconds(self._command(commit, "--prompt", PROMPT, "--max-tokens", "8"), until_output=True),
        }

    def bench(self, commit: Commit) -> dict[str, dict[str, Any]]:
        """Returns the records of ``mistralrs bench --json`` by the name of their test."""
        sizes = ["-p", str(self.prompt), "-n", str(self.generate), "-r", str(self.repetitions)]
        command = self._command(commit, "bench", "--json", *sizes)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        return {record["test"]: record for record in map(json.loads, done.stdout.splitlines())}

    def _command(self, commit: Commit, *words: str) -> list[str]:
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        return [str(commit.python), "-m", "mistralrs_cli", *threads, *words, "auto", str(self.model)]


def in_turns(rounds: int, sides: Sequence[Callable[[], dict[str, float]]]) -> list[Comparison]:
    """Runs both sides alternately. One more round goes before, which reads the files and compiles the sources."""
    for side in sides:
        side()
    measured: list[list[dict[str, float]]] = [[], []]
    for number in range(1, rounds + 1):
        for side, figures in zip(sides, measured, strict=True):
            figures.append(side())
            line = ", ".join(f"{name} {value:.4g} {UNITS[name]}" for name, value in figures[-1].items())
            print(f"round {number}, {'base' if figures is measured[0] else 'head'}: {line}", file=sys.stderr)
    base, head = measured
    return [Comparison(name, *(tuple(one[name] for one in side) for side in (base, head))) for name in UNITS]


def processor() -> str:
    """Returns the processor's model, by the system's own name of it."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> int:
    args = _arguments()
    task = Task(
        model=args.model.resolve(),
        prompt=args.prompt,
        generate=args.generate,
        repetitions=args.repetitions,
        threads=args.threads,
    )
    try:
        text, comparisons = _gate(args.base, args.head, task, args.rounds)
    except subprocess.CalledProcessError as error:
        print(error.stderr or "", end="", file=sys.stderr)
        print(f"nothing was compared: {shlex.join(error.cmd)} ended with {error.returncode}", file=sys.stderr)
        return 2
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")
    return 1 if any(comparison.verdict == "fell" for comparison in comparisons) else 0


def _gate(base: str, head: str, task: Task, rounds: int) -> tuple[str, list[Comparison]]:
    """Returns the report on two revisions, and its figures."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}  # otherwise the current folder comes first
    os.environ.pop("PYTHONPATH", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit by signal then removes the worktrees too
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gate-")))
        commits = [
            stack.enter_context(checked_out(revision, folder / side))
            for side, revision in (("base", base), ("head", head))
        ]
        build_both(commits, folder)
        load = os.getloadavg()[0]
        (record, *_) = task.bench(commits[1]).values()
        sides = [partial(task.figures, commit) for commit in commits]
        comparisons = in_turns(rounds, sides)
    conditions = Conditions(
        model=task.model.name,
        processor=processor(),
        isa=record["isa"],
        threads=record["threads"],
        cores=os.cpu_count() or 1,
        load=load,
        versions=f"Python {platform.python_version()}, torch {version('torch')}",
    )
    return report(*commits, comparisons=comparisons, conditions=conditions), comparisons


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a revision to compare with")
    parser.add_argument("head", nargs="?", default="HEAD", help="the revision that must not be slower")
    parser.add_argument("--model", type=Path, default=MODEL, help="a GGUF file")
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that prefill is measured with")
    parser.add_argument("--generate", type=int, default=128, help="tokens that decode is measured with")
    parser.add_argument("--repetitions", type=int, default=3, help="in a process, whose median is the round's figure")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--report", type=Path, help="a Markdown file to write")
    args = parser.parse_args()
    if args.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be at least {LEAST_ROUNDS}")
    if not args.model.is_file():
        parser.error(f"no such file: {args.model}")
    return args


if __name__ == "__main__":
    sys.exit(main())
