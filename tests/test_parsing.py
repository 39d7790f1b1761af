"""Text that is nested deeper than Python recurses."""

import gc
import json
import tomllib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mistralrs.parsing import parse_nested


class Cycle:
    """An object that only the collector of garbage can find."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.freeze()  # collecting takes no time for what is there already
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("parse", "opening"), [(json.loads, "["), (json.loads, '{"a":'), (tomllib.loads, "a = " + "[" * 3000)]
)
def test_too_deep_text_is_refused(parse: Callable[[str], Any], opening: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_nested(parse, opening * (100_000 if len(opening) < 10 else 1))


def test_options_reach_the_parser_and_its_own_errors_pass() -> None:
    assert parse_nested(json.loads, b'{"a": 1.5}', parse_float=str) == {"a": "1.5"}
    with pytest.raises(json.JSONDecodeError):
        parse_nested(json.loads, "[1")


def test_no_finalizer_begins_where_the_stack_ends(thresholds: None) -> None:
    """Garbage that is found at any depth of the parser would have its finalizer fail in the last few."""
    finalized: list[int] = []
    for count in range(700, 1100):
        weakref.finalize(Cycle(), finalized.append, count)
        gc.set_threshold(count)  # so many objects after the last collection, and so many levels deep
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_nested(json.loads, "[" * 2000)
        gc.collect()
    assert finalized == [*range(700, 1100)]
