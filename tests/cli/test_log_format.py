"""Records of the log on stderr."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from mistralrs_cli.terminal.log_format import JsonLogFormatter, LogFormatter


def failed() -> logging.LogRecord:
    try:
        raise ValueError("two\nlines \x1b[31m")
    except ValueError:
        return logging.LogRecord("a.b", logging.ERROR, __file__, 1, "%s failed", ("it",), sys.exc_info())


def test_a_record_is_one_line_with_the_words_of_its_error() -> None:
    record = failed()
    assert LogFormatter(tracebacks=False).format(record) == "ERROR a.b: it failed: ValueError: two lines"
    assert record.exc_info is not None  # which other handlers may want


@pytest.mark.parametrize("as_text", [False, True])
def test_who_asks_for_it_sees_the_traceback_once(as_text: bool) -> None:
    record = failed()
    if as_text:  # as it comes from another process
        record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None  # type: ignore[arg-type]
        assert LogFormatter(tracebacks=False).format(record) == "ERROR a.b: it failed"
    assert LogFormatter(tracebacks=True).format(record).count("Traceback") == 1


def test_a_record_as_json() -> None:
    record = failed()
    found = json.loads(JsonLogFormatter(tracebacks=False).format(record))
    assert found.pop("time").endswith("+00:00")
    error = "ValueError: two\nlines \x1b[31m"
    assert found == {"level": "error", "logger": "a.b", "message": "it failed", "error": error}
    line = JsonLogFormatter(tracebacks=True).format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["traceback"].startswith("Traceback")
