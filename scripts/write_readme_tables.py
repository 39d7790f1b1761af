"""Writes the parts of `README.md` and `docs/performance.md` that other files decide.

These are the tables of formats and architectures, and all that was measured: speeds and where other engines are ahead
(`docs/reports/compare.json` of `python -m benchmarks.compare`), and the precisions (`precisions.json` and
`divergence.json` there, of `benchmarks.precisions` and `benchmarks.divergence`). `--check` writes nothing and says
which document is out of date.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mistralrs.models.decoder import HEAD_THRESHOLD, PRECISIONS
from mistralrs.models.registry import GGUF_NAMES, HF_MODEL_TYPES
from mistralrs.quant.quantize import ISQ_TYPES
from mistralrs.quant.types import BY_GGML_ID, EXPANDED

ROOT = Path(__file__).parents[1]
SCRIPT = "scripts/write_readme_tables.py"
REPORTS = Path("docs", "reports")
GUIDE = Path("docs", "performance.md")
OURS = "mistralrs"
_NAMES = {"ours": OURS, "OpenVINO": "OpenVINO GenAI"}
_ENGINES = ("ours", "llama.cpp", "OpenVINO", "mistral.rs", "ik_llama.cpp")
"""In the table's order."""
_FILES = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M Q4_1",
    "synthetic-1.1b-q4_k_m.gguf": "synthetic 1.1B Q4_K_M",
    "synthetic-7b-q4_k_m.gguf": "synthetic 7B Q4_K_M",
    "synthetic-mixtral-mini-q4_k_m.gguf": "synthetic mixture of 8 experts Q4_K_M",
}
"""The others are in the report alone."""
_CELLS = {
    "pp512": "prompt of 512",
    "tg128": "answer of 128",
    "tg32": "answer of 32",
    "b16": "16 answers at once, together",
}
_FIRST = "from the start of the process to the first token"
_LESS_IS_BETTER = {
    "first_token_s": "first token",
    "cold_first_token_s": "first token, the file not in memory",
    "load_s": "load",
    "cold_load_s": "load, the file not in memory",
    "peak_bytes": "peak memory",
}
_OUTLIERS = "quads of columns with {:g} times the average, {:g} in the head"
_PRECISIONS = {
    **{name: _OUTLIERS.format(PRECISIONS[name].outlier_threshold, HEAD_THRESHOLD) for name in ("fast", "default")},
    "high": "everything",
}
_DIVERGED = {"SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2", "gemma-3-270m.Q4_K_M.gguf": "Gemma 3 270M Q4_K_M"}


def formats() -> Iterator[str]:
    """Returns a table of the types of weights, those alike in one row."""
    yield "| Types in GGUF files | `--isq`, `quantize --type` | In memory |"
    yield "| --- | --- | --- |"
    rows: dict[tuple[bool, str], list[str]] = {}
    made = {kind.name for kind in ISQ_TYPES.values()}
    for kind in BY_GGML_ID.values():
        kept = "as 8-bit integers with finer scales, without loss" if kind.name in EXPANDED else "as stored"
        rows.setdefault((kind.name in made, kept), []).append(kind.name)
    for (is_made, kept), names in rows.items():
        yield f"| {', '.join(names)} | {'made and read' if is_made else 'read'} | {kept} |"


def architectures() -> Iterator[str]:
    """Returns a table of the names that files give to architectures."""
    yield "| Architecture | `model_type` in `config.json` | `general.architecture` in GGUF |"
    yield "| --- | --- | --- |"
    for name, gguf in GGUF_NAMES.items():
        types = ", ".join(f"`{each}`" for each, meant in HF_MODEL_TYPES.items() if meant == name)
        yield f"| {name} | {types} | `{gguf}` |"


class Measured:
    """The medians of a comparison, by file, figure and engine."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.all_files = list(dict.fromkeys(record["file"] for record in records))
        self.files = [file for file in _FILES if file in self.all_files]
        self.engines = sorted({record["engine"] for record in records}, key=_ENGINES.index)
        threads = max(record["threads"] for record in records)
        self._records = [record for record in records if record["threads"] == threads]
        cells = dict.fromkeys(cell for record in self._records for cell in record["cells"])
        self.cells = sorted(cells, key=lambda cell: (cell.startswith("b"), cell.startswith("tg"), _numbers(cell)))

    def median(self, file: str, engine: str, figure: str) -> float | None:
        """Returns tokens a second of a cell, or seconds to the first token; None: not measured."""
        own = [record for record in self._records if (record["file"], record["engine"]) == (file, engine)]
        found = [record.get(figure, record["cells"].get(figure)) for record in own]
        values = [value for value in found if value is not None]
        return statistics.median(values) if values else None

    def row(self, file: str, figure: str) -> list[float | None]:
        """Returns a figure of each engine."""
        return [self.median(file, engine, figure) for engine in self.engines]

    def ahead(self, file: str, figure: str, *, is_time: bool = False) -> dict[str, float]:
        """Returns the engines that are faster than ours, and how many times."""
        own = self.median(file, "ours", figure)
        others = {name: self.median(file, name, figure) for name in self.engines if name != "ours"}
        ratios = {name: own / value if is_time else value / own for name, value in others.items() if own and value}
        return {name: ratio for name, ratio in ratios.items() if ratio > 1}


def _numbers(cell: str) -> list[int]:
    """Returns depth and length of a cell."""
    length, _, depth = cell.lstrip("ptgb").partition("@")
    return [int(depth or 0), int(length)]


def shortened(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Returns a sentence for each engine whose prompts and answers were cut."""
    lengths: dict[str, set[int]] = {}
    for record in records:
        lengths.setdefault(record["engine"], set()).update(record.get("shortened", {}).values())
    for name, found in lengths.items():
        if found:
            tokens = " or ".join(str(length) for length in sorted(found))
            yield f"- {_NAMES.get(name, name)} got {tokens} tokens where a row has more."


def ahead(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Returns a line for each engine and figure in which it is ahead of ours, in any file."""
    figures = Measured(records)
    named = {**{cell: _meaning(cell) for cell in figures.cells}, **_LESS_IS_BETTER}
    lines = []
    for name in figures.engines[1:]:
        for figure, meaning in named.items():
            ratios = {
                file: figures.ahead(file, figure, is_time=figure in _LESS_IS_BETTER).get(name)
                for file in figures.all_files
            }
            parts = [f"{file.removesuffix('.gguf')} {ratio:.2f}" for file, ratio in ratios.items() if ratio]
            if parts:
                lines.append(f"- {_NAMES.get(name, name)}, {meaning}: {', '.join(parts)}")
    yield from lines or ["In the last run none was ahead in any cell."]


def _meaning(cell: str) -> str:
    """Returns the words for a cell: ``tg128@2000`` is an answer of 128 behind 2,000 tokens."""
    depth, length = _numbers(cell)
    if cell.startswith("b"):
        return f"{length} answers at once"
    kind = "prompt" if cell.startswith("pp") else "answer"
    return f"{kind} of {length}" + (f" behind {depth:,} tokens" if depth else "")


def precisions(speeds: Sequence[Mapping[str, Any]], divergences: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Returns the table of precisions: speeds relative to `default`, and mean KL from float32."""
    files = [file for file in _FILES if any(record["file"] == file for record in speeds)]
    apart = {
        name: record["engines"] for file, name in _DIVERGED.items() for record in divergences if record["file"] == file
    }
    found = {(record["file"], record["precision"]): record for record in speeds}
    columns = [(file, figure) for figure in ("prompt", "answer") for file in files]
    titles = [f"{figure}, {_FILES[file]}" for file, figure in columns] + [f"mean KL, {name}" for name in apart]
    yield f"| | 15 bits for | {' | '.join(titles)} |"
    yield f"| --- | --- |{' --- |' * len(titles)}"
    for precision, kept in _PRECISIONS.items():
        ratios = [
            statistics.median(found[file, precision][figure]) / statistics.median(found[file, "default"][figure])
            for file, figure in columns
        ]
        means = [_distance(engines[precision]["mean"]) for engines in apart.values()]
        yield f"| `{precision}` | {kept} | {' | '.join([*(f'{ratio:.2f}' for ratio in ratios), *means])} |"
    theirs = [_distance(engines["llama.cpp"]["mean"]) for engines in apart.values()]
    yield f"| llama.cpp | | {' | '.join(['' for _ in columns] + theirs)} |"


def _distance(value: float) -> str:
    """Returns a divergence with two digits that count."""
    return f"{value:.{max(4, 1 - math.floor(math.log10(value)))}f}" if value >= 1e-5 else f"{value:.6f}"


def measured(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Returns the table of speeds, and a sentence for each engine that is ahead somewhere."""
    figures = Measured(records)
    yield f"| | {' | '.join(_NAMES.get(name, name) for name in figures.engines)} |"
    yield f"| --- |{' --- |' * len(figures.engines)}"
    for file in figures.files:
        begin = f"{_FILES[file]}, "
        for cell, meaning in _CELLS.items():
            values = figures.row(file, cell)
            if not any(values):
                continue
            yield f"| {begin}{meaning} | {' | '.join(shown(value, max, values) for value in values)} |"
            begin = ""
        times = figures.row(file, "first_token_s")
        yield f"| {_FIRST} | {' | '.join(shown(value, min, times, unit=' s') for value in times)} |"
    yield ""
    for name in figures.engines[1:]:
        parts = [
            f"{_FILES[file]}, {meaning} ({ratio:.2f} times as fast)"
            for file in figures.files
            for figure, meaning in [*_CELLS.items(), ("first_token_s", _FIRST)]
            if (ratio := figures.ahead(file, figure, is_time=figure == "first_token_s").get(name))
        ]
        if parts:
            yield f"- {_NAMES.get(name, name)} is ahead in: {'; '.join(parts)}."
    yield from shortened(records)


def shown(value: float | None, best: Any, values: Sequence[float | None], *, unit: str = "") -> str:
    """Returns a figure as a cell of the table, the best of its row in bold."""
    if value is None:
        return "-"
    text = f"{value:.2f}{unit}" if unit else f"{value:,.0f}"
    return f"**{text}**" if value == best(each for each in values if each is not None) else text


def with_blocks(text: str, blocks: Mapping[str, Iterator[str]]) -> str:
    """Returns a text with these lines between the marks of each name. Raises ``SystemExit`` where a mark is not."""
    for name, lines in blocks.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        block = "\n".join((begin, *lines, end))
        before, first, rest = text.partition(begin)
        _, last, after = rest.partition(end)
        if not (first and last):
            sys.exit(f"the document must have the marks {begin} and {end}")
        text = before + block + after
    return text


def documents(root: Path) -> dict[Path, dict[str, Iterator[str]]]:
    """Returns the blocks of each document, by their names there."""

    def read(name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((root / REPORTS / f"{name}.json").read_text(encoding="utf-8"))
        return found

    records = read("compare")
    return {
        root / "README.md": {
            "formats": formats(),
            "architectures": architectures(),
            "measured": measured(records),
            "precisions": precisions(read("precisions"), read("divergence")),
        },
        root / GUIDE: {"ahead": ahead(records)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, say which document is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the source tree")
    arguments = parser.parse_args()
    stale = 0
    for path, blocks in documents(arguments.root).items():
        before = path.read_text(encoding="utf-8")
        wanted = with_blocks(before, blocks)
        if not arguments.check:
            path.write_text(wanted, encoding="utf-8")
        elif wanted != before:
            sys.stderr.write(f"{path} is out of date: python {SCRIPT}\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
