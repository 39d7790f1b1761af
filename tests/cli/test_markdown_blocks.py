"""Markdown that streams: its lines do not depend on the pieces, and no control of a model is in them."""

from __future__ import annotations

import itertools
import re
from random import Random

import pytest

from mistralrs_cli.markdown_blocks import block_stream, divided_block
from mistralrs_cli.markdown_blocks.block_stream import BlockStream
from mistralrs_cli.markdown_screen.latex_text import latex_text
from mistralrs_cli.markdown_screen.theme import THEMES
from mistralrs_cli.markdown_screen.word_wrap import cell_width

STYLES = re.compile(r"\x1b\[[0-9;]*m")
TEXT = """# Title

A **bold** word, 日本語の文章 and [a link](https://example.org) in a line that is wider than the terminal.

1. one
2. two

   ```python
   x = "a"
   ```

| a | b |
|---|--:|
| wide cell | 1 |

```c
int x; /* a
comment */ int y;
```
"""


def rendered(pieces: list[str], *, width: int = 40) -> list[str]:
    stream, lines = BlockStream(THEMES["dark"], has_links=False), []
    for piece in pieces:
        stream.feed(piece)
        lines += stream.take_final(width)
        stream.open_lines(width)
    return lines + stream.take_final(width, ends=True)


def test_pieces_do_not_matter() -> None:
    whole = rendered([TEXT])
    for seed in range(30):
        random = Random(seed)
        cuts = [0, *sorted(random.sample(range(len(TEXT)), 20)), len(TEXT)]
        assert rendered([TEXT[a:b] for a, b in itertools.pairwise(cuts)]) == whole, seed
    assert rendered(list(TEXT)) == whole


MARKS = ("- ", "* ", "1. ", "2) ", "> ", ">", "   ", "    ", "-   ", "10. ", "  1.  ", "", "", "")
LEAVES = ("a", "b **c** d", "", "# h", "```py", "```", "x", "| a | b |", "|--|--|", "<div>", "<pre>", "</pre>", "---")
DEFINED = ("[r]: /u", "see [r]", "===", "    code")


def nested(random: Random) -> str:
    """Blocks within lists and quotations within each other, some of them open or cut off."""
    lines, around = [], list[str]()
    for _ in range(random.randint(2, 14)):
        if random.random() < 0.35:
            around = around[: random.randint(0, len(around))]
        line = "".join("> " if mark.strip() == ">" else " " * len(mark) for mark in around)
        while random.random() < 0.4 and len(around) < 5:
            around.append(random.choice(MARKS))
            line += around[-1]
        if random.random() < 0.1:
            line = line[random.randint(0, len(line)) :]
        lines.append(line + random.choice(LEAVES + DEFINED))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("most_lines", [3, 64])
def test_containers_come_block_by_block_as_the_whole(most_lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divided_block, "MOST_LINES", most_lines)
    monkeypatch.setattr(block_stream, "MOST_LINES", most_lines)
    for seed in range(25):
        text = nested(Random(seed))
        assert rendered(list(text)) == rendered([text]), repr(text)


LONG_BLOCKS = {
    "nested items": "- outer\n" + "".join(f"  {number + 1}. item {number}\n" for number in range(300)),
    "paragraphs in an item": "1. first\n" + "".join(f"\n   text {number}\n" for number in range(300)),
    "one quoted paragraph": "".join(f"> text {number}\n" for number in range(300)),
    "quoted items": "".join(f"> - item {number}\n" for number in range(300)),
    "code in an item": "- code:\n  ```python\n" + "".join(f"  x = {number}\n" for number in range(300)) + "  ```\n",
    "a table in an item": "- table\n\n  | a |\n  |--|\n" + "".join(f"  | {number} |\n" for number in range(300)),
    "one line in an item": "1. first\n2. " + "".join(f"text {number} and more words " for number in range(300)) + "\n",
    "one quoted line": "> " + "".join(f"text {number} and more words " for number in range(300)) + "\n",
    "HTML": "<pre>\n" + "".join(f"line {number}\n" for number in range(300)) + "</pre>\n",
    "code without a fence": "".join(f"    x = {number}\n" for number in range(300)),
}


@pytest.mark.parametrize("kind", LONG_BLOCKS)
def test_a_long_block_is_final_but_for_its_end(kind: str) -> None:
    text = LONG_BLOCKS[kind]
    whole = rendered([text])
    assert rendered([text[at : at + 70] for at in range(0, len(text), 70)]) == whole
    bare = "\n".join(STYLES.sub("", line) for line in whole)
    assert all(re.search(rf"\b{number}\b", bare) for number in range(300))
    stream = BlockStream(THEMES["dark"], has_links=False)
    stream.feed(text)
    final = stream.take_final(40)
    assert len(final) > len(whole) - 120
    assert len(final) + len(stream.open_lines(40)) >= len(whole) - 1


def test_a_quotation_that_ends_with_its_mark_is_one() -> None:
    text = "> bar\n>\nbaz\n\nend\n"
    assert rendered(list(text)) == rendered([text])
    assert [STYLES.sub("", line) for line in rendered([text])] == ["│ bar", "", "baz", "", "end"]


@pytest.mark.parametrize("end", ["", "\nSee [there][ref].\n"])
def test_definitions_in_a_list_are_known_below_them(end: str) -> None:
    text = f"- one\n\n  [ref]: https://example.org\n- two\n- [three][ref]\n{end}"
    assert rendered(list(text)) == rendered([text])
    assert any("three (https://example.org)" in STYLES.sub("", line) for line in rendered([text]))


def test_lines_fit_and_read_well() -> None:
    lines = [STYLES.sub("", line) for line in rendered([TEXT])]
    assert all(cell_width(line) <= 40 for line in lines)
    assert lines[0] == "Title"
    assert " 1. one" in lines
    assert "wide cell  1" in lines


@pytest.mark.parametrize("text", ["a&#27;[31mb", "`a`&#x9b;2J", "[x](http://a.b/&#27;]0;t)", "&#x202e;abc"])
def test_entities_bring_no_controls(text: str) -> None:
    shown = STYLES.sub("", "".join(rendered([text])))
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", shown)


def linked(text: str, *, theme: str = "dark", width: int = 40) -> list[str]:
    stream = BlockStream(THEMES[theme], has_links=True)
    stream.feed(text)
    return stream.take_final(width, ends=True)


LINK = re.compile(r"\x1b\]8;;(.*?)\x1b\\")


def test_links_lead_to_their_addresses() -> None:
    lines = linked("[a name that is longer than one line of the terminal](https://example.org/a) end")
    assert len(lines) == 2
    assert [LINK.findall(line) for line in lines] == [["https://example.org/a", ""]] * 2  # each line closes its link
    assert STYLES.sub("", LINK.sub("", " ".join(lines))) == "a name that is longer than one line of the terminal end"
    for text, shown in (
        ("[other.org](https://example.org)", "other.org (https://example.org)"),  # a name that lies
        ("[x](javascript:alert(1))", "[x](javascript:alert(1))"),
        ("[x](file:///etc/passwd)", "[x](file:///etc/passwd)"),
        ("[x](ftp://example.org)", "x (ftp://example.org)"),
    ):
        assert STYLES.sub("", LINK.sub("", linked(text)[0])) == shown
    (hostile,) = linked("[x](http://a.b/&#27;]0;t&#7;)")
    assert not re.search("[\x00-\x1a\x1c-\x1f\x7f-\x9f]", hostile)
    assert "\x1b" not in STYLES.sub("", LINK.sub("", hostile))


def test_themes_differ_in_colours_alone() -> None:
    dark, light = linked(TEXT), linked(TEXT, theme="light")
    assert dark != light
    assert [STYLES.sub("", line) for line in dark] == [STYLES.sub("", line) for line in light]
    bright = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:9[1-7]|37)m *[^ \x1b]")
    assert any(map(bright.search, dark))
    assert not any(map(bright.search, light))  # which a light background swallows


def test_formulas() -> None:
    assert latex_text(r"\frac{a+b}{2} \leq x^{2}") == "(a+b)/2 ≤ x²"
    assert latex_text(r"\unknown{x}") is None


@pytest.mark.parametrize("width", [40, 12])
def test_a_long_table_comes_row_by_row(width: int) -> None:
    rows = [f"| {number} | {'x' * (number % 30)} {number} |" for number in range(150)]
    text = "before\n\n| a | b |\n|---|--:|\n" + "\n".join(rows) + "\n\nafter\n"
    whole = rendered([text], width=width)
    assert rendered([text[at : at + 70] for at in range(0, len(text), 70)], width=width) == whole
    lines = [STYLES.sub("", line) for line in whole]
    assert all(cell_width(line) <= width for line in lines)
    assert any(line.endswith(" 149") for line in lines)
    assert lines[-2:] == ["", "after"]
    stream = BlockStream(THEMES["dark"], has_links=False)
    stream.feed(text)
    assert len(stream.take_final(width)) > 128  # and not only at the end
