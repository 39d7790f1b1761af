"""The format of log records on stderr: one line each, and tracebacks only on demand."""

from __future__ import annotations

import copy
import logging

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
