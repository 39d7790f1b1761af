"""A sample of the chunkings; `make soak` draws every example in twenty."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from mistralrs_cli.markdown_screen.live_region import LiveRegion
from tests.cli.scrollback import COMMONMARK, SIZES, commonmark_examples
from tests.soak.markdown_chunkings import SMALL, drill, long_answers, report

pytestmark = pytest.mark.skipif(not COMMONMARK.exists(), reason="the examples are not here; to get them: make fixtures")


def texts() -> list[str]:
    return [str(each["markdown"]) for each in commonmark_examples()]


def test_a_sample_ends_as_the_whole() -> None:
    alone = drill(Random(7).sample(texts(), 60), 4, sizes=[SMALL, SIZES[0]], seed=7)
    together = drill(long_answers(texts()[:80], seed=7)[:1], 1, sizes=SIZES[2:], seed=7)
    assert [each.found for results in (alone, together) for each in results.values()] == [[], [], []]
    assert "| an example | 20x6 | 120 |" in report(alone, together, seed=7)


def test_a_rewritten_line_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = LiveRegion._change

    def too_far(self: LiveRegion, old: Sequence[str], new: Sequence[str], same: int) -> str:
        return changed(self, old, new, same).replace("\x1b[2A", "\x1b[7A")

    monkeypatch.setattr(LiveRegion, "_change", too_far)
    assert any(each.found for each in drill(texts()[:60], 3, sizes=[SMALL], seed=7).values())
