"""``completions``: prints a shell's function, or the candidates that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from mistralrs.api.options.declarations import DECLARED
from mistralrs.errors import UsageError
from mistralrs_cli.completion.completion_options import CompletionsOptions
from mistralrs_cli.completion.shell_scripts import SCRIPTS
from mistralrs_cli.terminal.output import clean_line

_ANYWHERE = ("debug", "log_level", "log_json")


def run_completions(words: CompletionsOptions, flags: Mapping[str, object], stdout: TextIO) -> int:
    """Prints; returns the exit code. ``flags``: the options that were typed before. Raises ``UsageError`` for those
    that mean nothing here.
    """
    for name in flags:
        if name not in _ANYWHERE:
            flag = DECLARED[name].flags[0]
            raise UsageError(f"{flag} means nothing to completions", hint=f"leave {flag} out")
    if not words.words:
        stdout.write(SCRIPTS[words.shell])
    else:
        from mistralrs_cli.completion.candidates import candidates

        for each in candidates(words.words):
            stdout.write(f"{clean_line(each.word)}\t{clean_line(each.meaning)}\n" if each.meaning else f"{each.word}\n")
    stdout.flush()
    return 0
