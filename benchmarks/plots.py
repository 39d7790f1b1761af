"""Draws how speed and memory grow, from the figures of `compare.py`.

    pip install matplotlib
    python -m benchmarks.plots [docs/reports/compare.json] [--out docs/pictures]

Writes ``performance-*.svg``: decode and prompts against the bytes that a token reads, decode against its depth,
batches against their sequences, speed against threads, and peak memory against the size of the file. A picture whose
figures are missing is not drawn. matplotlib is not among the packages of the tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.roofline import TokenCost

Point = tuple[float, float]
Record = Mapping[str, Any]
COLOURS = {"ours": "#0b5fa5", "llama.cpp": "#d1731f", "OpenVINO": "#6a3d9a", "mistral.rs": "#b2182b"}
WIDTH, HEIGHT = 5.2, 3.6
"""Inches."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Lines of points, one for each engine (and file), and the limit of the machine as a dashed line."""

    name: str
    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[Point]]
    limit: Sequence[Point] = field(default=())
    is_logarithmic: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, nargs="?", default=Path("docs/reports/compare.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args(arguments)
    pyplot = importlib.import_module("matplotlib.pyplot")
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mistralrs", "font.family": "sans-serif"})
    for picture in pictures(json.loads(args.figures.read_text())):
        path = args.out / f"performance-{picture.name}.svg"
        draw(pyplot, picture, path)
        print(path)


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Those whose figures are there."""
    widest = max(record["threads"] for record in records)
    own = [record for record in records if record["threads"] == widest]
    sizes = "bytes of weights that a token reads, GB"
    found = [
        Picture(
            "decode-size", "Decode of one sequence", sizes, "tokens/s", of_sizes(own, first_of("tg128", "tg32")),
            limit_of(own, lambda cost, record: record["plain_read"] / cost.bytes), is_logarithmic=True,
        ),
        Picture(
            "prompt-size", "A prompt of 512 tokens", sizes, "tokens/s", of_sizes(own, first_of("pp512")),
            limit_of(own, lambda cost, record: record["int8_peak"] / cost.prefill_macs(512)), is_logarithmic=True,
        ),
        Picture(
            "memory", "Peak memory", "file, GB", "GB",
            of_sizes(own, lambda record: record["peak_bytes"] / 1e9, size=lambda record: record["bytes"] / 1e9),
            [(x, x) for x in sorted({record["bytes"] / 1e9 for record in own})],
        ),
        Picture("depth", "Decode behind a context", "tokens of context", "tokens/s, of those without context",
                dict(of_cells(own, {"tg128": 0, "tg128@2000": 2000, "tg128@8000": 8000}))),
        Picture("batch", "Decode of many sequences", "sequences", "tokens/s together, of those of one",
                dict(of_cells(own, {"b1": 1, "b4": 4, "b16": 16, "b32": 32}))),
        Picture("threads", "Decode and prompts by threads", "threads", "tokens/s, of those of one thread",
                dict(of_threads(records, ("tg128", "pp512")))),
    ]  # fmt: skip
    for picture in found:
        if any(len(points) > 1 for points in picture.lines.values()):
            yield picture


def first_of(*cells: str) -> Callable[[Record], float | None]:
    """The figure of the first of these cells that a record has."""
    return lambda record: next((record["cells"][cell] for cell in cells if record["cells"].get(cell)), None)


def of_sizes(
    records: Sequence[Record],
    figure: Callable[[Record], float | None],
    *,
    size: Callable[[Record], float] = lambda record: record["cost"]["bytes"] / 1e9,
) -> dict[str, list[Point]]:
    """A point for each file, by engine."""
    lines: dict[str, list[Point]] = {}
    for engine in dict.fromkeys(record["engine"] for record in records):
        mine = [record for record in records if record["engine"] == engine]
        points = [(size(record), figure(record)) for record in mine]
        lines[engine] = medians((x, y) for x, y in points if y)
    return lines


def limit_of(records: Sequence[Record], rate: Callable[[TokenCost, Record], float]) -> list[Point]:
    return medians((record["cost"]["bytes"] / 1e9, rate(TokenCost(**record["cost"]), record)) for record in records)


def of_cells(records: Sequence[Record], places: Mapping[str, float]) -> Iterator[tuple[str, list[Point]]]:
    """A line for each engine and file that has these cells, relative to its first one."""
    for engine, file in dict.fromkeys((record["engine"], record["file"]) for record in records):
        mine = [record["cells"] for record in records if (record["engine"], record["file"]) == (engine, file)]
        points = medians((place, cells[cell]) for cells in mine for cell, place in places.items() if cells.get(cell))
        if len(points) > 1:
            yield f"{engine}, {file.removesuffix('.gguf')}", [(x, y / points[0][1]) for x, y in points]


def of_threads(records: Sequence[Record], cells: Sequence[str]) -> Iterator[tuple[str, list[Point]]]:
    for cell in cells:
        for engine, file in dict.fromkeys((record["engine"], record["file"]) for record in records):
            mine = [record for record in records if (record["engine"], record["file"]) == (engine, file)]
            points = medians((record["threads"], record["cells"][cell]) for record in mine if record["cells"].get(cell))
            if len(points) > 1:
                yield f"{engine}, {cell}, {file.removesuffix('.gguf')}", [(x, y / points[0][1]) for x, y in points]


def medians(points: Iterable[Point]) -> list[Point]:
    """One point for each x, in ascending order."""
    found: dict[float, list[float]] = {}
    for x, y in points:
        found.setdefault(x, []).append(y)
    return [(x, statistics.median(found[x])) for x in sorted(found)]


def draw(pyplot: Any, picture: Picture, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(WIDTH, HEIGHT))
    for name, points in picture.lines.items():
        engine = name.partition(",")[0]
        style = {"color": COLOURS.get(engine), "linestyle": "-" if engine == "ours" else "--"}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, **style)
    if picture.limit:
        axes.plot(*zip(*picture.limit, strict=True), color="grey", linestyle=":", label="limit of the machine")
    if picture.is_logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set(title=picture.title, xlabel=picture.x, ylabel=picture.y)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
