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


FORMS = ("{} ", "日本語の{}文 ", "**{}** ", "{}\n\n", "\n\n- {}\n- x\n\n", "\n\n```c\n{}\n```\n\n")


@pytest.mark.parametrize("seed", range(4))
def test_another_size_in_mid_answer_loses_nothing(seed: int) -> None:
    random = Random(seed)
    sizes = [(random.randint(20, 200), random.randint(3, 60)) for _ in range(4)]
    marks = [f"m{number}m" for number in range(120)]
    text = "".join(random.choice(FORMS).format(mark) for mark in marks)
    lines = "".join(shown(chunked(random, text), columns=80, lines=24, random=random, sizes=sizes))
    places = [lines.rfind(mark) for mark in marks]
    assert -1 not in places
    assert places == sorted(places)


WIDE = {
    "columns": "| "
    + " | ".join(f"column {number}" for number in range(30))
    + " |\n"
    + "|--" * 30
    + "|\n"
    + "| v " * 30
    + "|\n",
    "cells": "| a | b |\n|---|---|\n" + "| " + "長い文章" * 20 + " | " + "word " * 40 + " |\n",
    "an address": "| a |\n|---|\n| " + "x" * 500 + " |\n",
    "emoji": "👩‍👩‍👧‍👦🎉🏳️‍🌈" * 40 + "\n",
    "combining": "e\u0301\u0323a\u0308" * 80 + "\n",
    "code": "```python\n" + "x = '日本'; " * 20 + "\n```\n",
}


@pytest.mark.parametrize(("columns", "lines"), SIZES)
@pytest.mark.parametrize("kind", WIDE)
def test_wide_answers_end_as_the_whole(kind: str, columns: int, lines: int) -> None:
    random = Random(columns)
    whole = shown([WIDE[kind]], columns=columns, lines=lines)
    assert shown(chunked(random, WIDE[kind]), columns=columns, lines=lines, random=random) == whole
