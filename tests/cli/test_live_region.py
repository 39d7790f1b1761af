"""Streamed answers on a screen: they end as the whole does, scrollback included."""

from __future__ import annotations

import io
from random import Random

import pyte
import pytest

from mistralrs_cli.markdown_screen.block_stream import BlockStream
from mistralrs_cli.markdown_screen.live_region import LiveRegion
from mistralrs_cli.markdown_screen.theme import THEMES

TEXT = "\n".join(
    [
        "# Head\n",
        "Some **bold** 日本語の文章 words and 🎉 emoji e\u0301 go on. " * 12 + "\n",
        *[f"{number}. item with text" for number in range(1, 15)],
        "\n```python",
        *[f"x{number} = '{'y' * (number * 3)}'" for number in range(30)],
        "```\n\n| a | b |\n|--|--|",
        *[f"| 値{number} | w{number} |" for number in range(30)],
        "\nend",
    ]
)


def screen_of(pieces: list[str], *, columns: int, lines: int) -> list[str]:
    screen = pyte.HistoryScreen(columns, lines, history=10_000)
    screen.set_mode(pyte.modes.LNM)
    stream, output = pyte.Stream(screen), io.StringIO()
    region = LiveRegion(output, lambda: (columns, lines))
    blocks = BlockStream(THEMES["dark"], has_links=False)
    for piece in pieces:
        blocks.feed(piece)
        region.draw(blocks.take_final(columns - 1), blocks.open_lines(columns - 1))
    region.draw(blocks.take_final(columns - 1, ends=True), [])
    stream.feed(output.getvalue())
    above = ["".join(row[place].data for place in range(columns)) for row in screen.history.top]
    return "\n".join(line.rstrip() for line in [*above, *screen.display]).rstrip().split("\n")


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40), (40, 20)])
def test_screen_and_scrollback_end_as_the_whole(columns: int, lines: int) -> None:
    whole = screen_of([TEXT], columns=columns, lines=lines)
    random, pieces, rest = Random(columns), [], TEXT
    while rest:
        size = random.randint(1, 30)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert screen_of(pieces, columns=columns, lines=lines) == whole
    assert len(whole) > lines
