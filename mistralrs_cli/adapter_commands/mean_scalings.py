"""X-LoRA's scalings of an answer, averaged over the layers: as rows of text, as shades, and for the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from mistralrs.api.loaded_adapters.known_adapters import ScalingAxes
from mistralrs.api.loaded_adapters.scalings import Speller, rows
from mistralrs.engine.events import Scalings
from mistralrs_cli.terminal.output import clean_block

SHADES = " ░▒▓█"
LONGEST_TOKEN = 12
"""Columns of a terminal that the text of a token may take."""


@dataclass(frozen=True, slots=True)
class MeanScalings:
    """The means over the layers."""

    adapters: tuple[str, ...]
    start: int
    """Position of the first token."""
    tokens: tuple[str, ...]
    """Texts, not checked."""
    weights: tuple[tuple[float, ...], ...]
    """For each token a mean for each adapter."""

    @property
    def lowest(self) -> float:
        """The mean that is drawn as nothing: 0, or the least if that is negative."""
        return min((0.0, *(weight for each in self.weights for weight in each)))

    @property
    def highest(self) -> float:
        """The largest mean."""
        return max((weight for each in self.weights for weight in each), default=0.0)

    def share(self, weight: float) -> float:
        """Returns where a mean lies between the lowest (0) and the highest (1)."""
        width = self.highest - self.lowest
        return (weight - self.lowest) / width if width > 0 else 0.0


def mean_scalings(scalings: Scalings, axes: ScalingAxes, tokenizer: Speller, *, first: int = 0) -> MeanScalings:
    """Returns the means of the tokens from position ``first`` on."""
    skipped = max(first - scalings.start, 0)
    weights = [tuple(fmean(of_adapter) for of_adapter in zip(*layers, strict=True)) for layers in rows(scalings)]
    tokens = tuple(tokenizer.token_text(token) for token in scalings.tokens[skipped:])
    return MeanScalings(axes.adapters, scalings.start + skipped, tokens, tuple(weights[skipped:]))


def shown_token(text: str) -> str:
    """Returns a token's text on one line, without controls; its line feeds and tabs are arrows."""
    return clean_block(text.replace("\n", "↵").replace("\t", "→")) or "·"


def table(means: MeanScalings) -> Iterator[str]:
    """Returns lines: one for each token, with a column for each adapter."""
    names = [clean_block(name) for name in means.adapters]
    texts = [shown_token(text) for text in means.tokens]
    widths = [max(len(name), 6) for name in names]
    wide = max((len(text) for text in texts), default=0)
    yield " ".join(("position", "token".ljust(wide), *(n.rjust(w) for n, w in zip(names, widths, strict=True))))
    for place, (text, weights) in enumerate(zip(texts, means.weights, strict=True)):
        numbers = (f"{weight:.3f}".rjust(width) for weight, width in zip(weights, widths, strict=True))
        yield " ".join((f"{means.start + place:>8}", text.ljust(wide), *numbers))


def heat_map(means: MeanScalings, *, width: int) -> Iterator[str]:
    """Returns lines of at most ``width`` columns: tokens, and below them the shades of each adapter, band after band.

    A token is as wide as its text. The last line says what the darkest shade means.
    """
    from rich.cells import cell_len, set_cell_size

    label = min(max(map(cell_len, means.adapters), default=0), max(width // 3, 1))
    names = [set_cell_size(clean_block(name), label) for name in means.adapters]
    room = max(width - label - 1, 1)
    cells = [(text, min(max(cell_len(text), 1), LONGEST_TOKEN, room)) for text in map(shown_token, means.tokens)]
    for band in _bands([columns for _, columns in cells], room):
        yield " " * (label + 1) + "".join(set_cell_size(*cells[place]) for place in band)
        for adapter, name in enumerate(names):
            shades = (_shade(means, means.weights[place][adapter]) * cells[place][1] for place in band)
            yield f"{name} {''.join(shades)}"
    yield f"mean over the layers: {SHADES[-1]} {means.highest:.2f}"


def _shade(means: MeanScalings, weight: float) -> str:
    return SHADES[round(means.share(weight) * (len(SHADES) - 1))]


def _bands(widths: Sequence[int], room: int) -> Iterator[range]:
    """Returns ranges of tokens that fit beside each other."""
    start = used = 0
    for place, width in enumerate(widths):
        if used + width > room:
            yield range(start, place)
            start, used = place, 0
        used += width
    if start < len(widths):
        yield range(start, len(widths))
