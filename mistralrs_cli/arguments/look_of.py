"""The look of answers that the options ask for."""

from __future__ import annotations

from mistralrs.api.options.declarations import Options
from mistralrs.errors import UsageError
from mistralrs_cli.markdown_screen.answer_display import Look


def look_of(options: Options) -> Look:
    """Returns the look. Raises ``UsageError`` for options that exclude each other."""
    if options.plain and options.color == "always":
        raise UsageError("--plain and --color always exclude each other", hint="leave one of them out")
    return Look(plain=options.plain, theme=options.theme, color=options.color)
