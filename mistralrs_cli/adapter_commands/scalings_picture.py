"""Draws the mean scalings of tokens as an SVG picture: a row for each adapter, a column for each token, a legend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.sax.saxutils import escape

from mistralrs_cli.adapter_commands.mean_scalings import MeanScalings, shown_token

CELL_WIDTH, CELL_HEIGHT = 26, 22
TOKEN_HEIGHT = 84
"""Height of the tokens' texts, which stand upright above their columns."""
MOST_COLUMNS = 40
"""Tokens beside each other; more tokens are drawn in bands, one below the other."""
MARGIN, LEGEND_HEIGHT, LETTER = 12, 44, 7
LIGHT, DARK = (247, 251, 255), (8, 48, 107)
LONGEST_TOKEN, LONGEST_NAME = 11, 32
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def picture(means: MeanScalings) -> str:
    """Returns the SVG."""
    label = MARGIN * 2 + LETTER * min(max((len(name) for name in means.adapters), default=0), LONGEST_NAME)
    columns = min(len(means.tokens), MOST_COLUMNS)
    band_height = TOKEN_HEIGHT + CELL_HEIGHT * len(means.adapters) + MARGIN
    starts = range(0, len(means.tokens), MOST_COLUMNS)
    width = max(label + CELL_WIDTH * columns + MARGIN, 400)
    height = MARGIN + band_height * len(starts) + LEGEND_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="ui-monospace, monospace" font-size="12">',
        "<title>Mean scaling of each adapter, by token</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, start in enumerate(starts):
        lines += _band(means, start, left=label, top=MARGIN + number * band_height)
    lines += _legend(means, top=height - LEGEND_HEIGHT)
    return "\n".join((*lines, "</svg>", ""))


def _band(means: MeanScalings, start: int, *, left: int, top: int) -> Iterator[str]:
    rows = top + TOKEN_HEIGHT
    for row, name in enumerate(means.adapters):
        y = rows + row * CELL_HEIGHT + CELL_HEIGHT * 2 // 3
        yield f'<text x="{left - MARGIN}" y="{y}" text-anchor="end">{_text(name, LONGEST_NAME)}</text>'
    stop = min(start + MOST_COLUMNS, len(means.tokens))
    for column, place in enumerate(range(start, stop)):
        x, token = left + column * CELL_WIDTH, means.tokens[place]
        at = f"{x + CELL_WIDTH * 2 // 3} {rows - 4}"
        yield f'<text transform="translate({at}) rotate(-90)" xml:space="preserve">{_text(token, LONGEST_TOKEN)}</text>'
        for row, weight in enumerate(means.weights[place]):
            said = f"{_text(means.adapters[row], LONGEST_NAME)}, token {means.start + place}: {weight:.4f}"
            yield (
                f'<rect x="{x}" y="{rows + row * CELL_HEIGHT}" width="{CELL_WIDTH - 1}" height="{CELL_HEIGHT - 1}" '
                f'fill="{_colour(means.share(weight))}"><title>{said}</title></rect>'
            )


def _legend(means: MeanScalings, *, top: int) -> Iterator[str]:
    steps, size = 8, 16
    yield f'<text x="{MARGIN}" y="{top + 13}">mean over the layers</text>'
    x = MARGIN + LETTER * 22
    yield f'<text x="{x}" y="{top + 13}">{means.lowest:.2f}</text>'
    x += LETTER * 6
    for step in range(steps):
        fill = _colour(step / (steps - 1))
        yield f'<rect class="legend" x="{x + step * size}" y="{top}" width="{size}" height="{size}" fill="{fill}"/>'
    yield f'<text x="{x + steps * size + LETTER}" y="{top + 13}">{means.highest:.2f}</text>'


def _colour(share: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(LIGHT, DARK, strict=True))


def _text(text: str, longest: int) -> str:
    shown = _NOT_IN_XML.sub("\ufffd", shown_token(text))
    return escape(shown if len(shown) <= longest else f"{shown[: longest - 1]}…")
