"""All examples of the CommonMark specification, on a screen: their text is shown, as the specification reads it."""

from __future__ import annotations

from collections.abc import Iterable
from html.parser import HTMLParser

import pytest

from mistralrs_cli.markdown_blocks.block_stream import BlockStream
from mistralrs_cli.markdown_screen.theme import THEMES
from tests.cli.scrollback import COMMONMARK, commonmark_examples
from tests.cli.test_markdown_blocks import STYLES

LATE_DEFINITIONS = {534, 535}
"""Links that are defined below them, after they have been shown as they are written."""


class _Text(HTMLParser):
    """Collects the text of a page, and those of its images."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.parts.append(dict(attributes).get("alt") or "")


def without_spaces(parts: Iterable[str]) -> str:
    return "".join("".join(parts).split())


def is_within(text: str, whole: str) -> bool:
    """Whether all characters of ``text`` are in ``whole``, in their order."""
    rest = iter(whole)
    return all(character in rest for character in text)


@pytest.mark.skipif(not COMMONMARK.exists(), reason="the examples are not here; to get them: make fixtures")
def test_the_text_of_every_example_is_shown() -> None:
    missing, count = set(), 0
    for example in commonmark_examples():
        stream = BlockStream(THEMES["dark"], has_links=False)
        stream.feed(example["markdown"])
        lines = [STYLES.sub("", line) for line in stream.take_final(80, ends=True)]
        count += 1
        if not is_within(without_spaces(_Text(example["html"]).parts), without_spaces(lines)):
            missing.add(example["example"])
    assert (missing, count) == (LATE_DEFINITIONS, 652)
