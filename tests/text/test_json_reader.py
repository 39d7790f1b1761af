"""The incremental reader accepts the same texts as Python's `json`, in any parts."""

from __future__ import annotations

import json
from random import Random

import pytest

from mistralrs.text.response.json_reader import MAX_DEPTH, JsonReader, What
from tests.text.response_scripts import random_cuts, random_value, spelled_json


def refuse(word: str) -> None:
    raise ValueError(word)


def accepts(parts: list[str]) -> bool:
    """Whether the parts are one JSON value; checks that values are inside each other."""
    reader, open_values = JsonReader(), 0
    for part in parts:
        place = 0
        while (event := reader.read(part, place)) is not None:
            if event.what is What.ERROR:
                return False
            assert place <= event.place <= len(part)
            place = event.place
            open_values += 1 if event.what is What.BEGIN else -1
            assert open_values >= 0
    return reader.finish()


def test_it_accepts_what_python_does() -> None:
    random = Random(5)
    for _ in range(1500):
        text = spelled_json(random, random_value(random))
        if random.random() < 0.7:  # damage it
            place = random.randrange(len(text) + 1)
            text = text[:place] + random.choice('{}[],:"\\0-.eE \n\x01ntu') + text[place + random.randrange(2) :]
        try:
            json.loads(text, parse_constant=refuse)
            valid = True
        except ValueError:
            valid = False
        assert accepts([text]) == accepts(list(text)) == accepts(random_cuts(random, text)) == valid, text


def test_values_have_paths() -> None:
    reader, text, place = JsonReader(), '[{"a": {"b\\u00e9": [1, "x"]}}, 2]', 0
    found = []
    while (event := reader.read(text, place)) is not None:
        place = event.place
        if event.what is What.BEGIN:
            found.append((event.path, event.first))
    assert found == [
        ((), "["),
        ((None,), "{"),
        ((None, "a"), "{"),
        ((None, "a", "bé"), "["),
        ((None, "a", "bé", None), "1"),
        ((None, "a", "bé", None), '"'),
        ((None,), "2"),
    ]
    assert reader.done


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[" * (MAX_DEPTH + 1), "{'a': 1}", "[1,]", "01", "//", "", "1 2"])
def test_it_refuses_the_rest(text: str) -> None:
    assert not accepts([text])
