"""The format of log records on stderr: one line each, and tracebacks only on demand."""

from __future__ import annotations

import copy
import json
import logging
from datetime import UTC, datetime

from mistralrs_cli.terminal.output import clean_block, clean_line


class LogFormatter(logging.Formatter):
    """``LEVEL logger: message``, followed by the text of the record's error."""

    def __init__(self, *, tracebacks: bool) -> None:
        """``tracebacks``: whether the error's traceback follows the line."""
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, or lines with a traceback."""
        if self._tracebacks:
            return clean_block(super().format(record))
        shown = copy.copy(record)  # other handlers may need the rest
        shown.exc_info = shown.exc_text = shown.stack_info = None
        error = record.exc_info[1] if record.exc_info else None
        words = "" if error is None else f": {type(error).__name__}: {error}"
        return clean_line(super().format(shown) + words)


class JsonLogFormatter(logging.Formatter):
    """A JSON object: ``time`` (UTC, ISO 8601), ``level``, ``logger`` and ``message``; with an error its ``error``."""

    def __init__(self, *, tracebacks: bool) -> None:
        """``tracebacks``: whether the error's traceback is there too."""
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        """Returns the object on one line."""
        error = record.exc_info[1] if record.exc_info else None
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if error is not None:
            found["error"] = f"{type(error).__name__}: {error}"
        if self._tracebacks and (record.exc_info or record.exc_text):
            found["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(found)
