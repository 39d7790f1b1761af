"""Streamed answers on a screen: they end as the whole does, scrollback included."""

from __future__ import annotations

from random import Random

import pytest

from tests.cli.scrollback import SIZES, chunked, shown

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


@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_screen_and_scrollback_end_as_the_whole(columns: int, lines: int) -> None:
    whole = shown([TEXT], columns=columns, lines=lines)
    random = Random(columns)
    assert shown(chunked(random, TEXT), columns=columns, lines=lines, random=random) == whole
    assert len(whole) > lines
