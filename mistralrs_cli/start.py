"""The entry points: they import the rest of the program in such a way that Ctrl-C ends it quietly."""

from __future__ import annotations

import gc
import sys

from mistralrs_cli.terminal.exits import leaving_at_once


def start() -> int:
    """Runs the process's command line and returns its exit code: ``mistralrs``, and ``mistralrs-server``, as the
    original calls it."""
    gc.disable()  # a start makes much and drops little; the program collects garbage once it is loaded
    with leaving_at_once():
        from mistralrs_cli.app import main
    return main()


def start_bench() -> int:
    """Runs ``mistralrs-bench``, which is ``mistralrs bench``, and returns its exit code."""
    gc.disable()
    with leaving_at_once():
        from mistralrs_cli.app import main
    words = sys.argv[1:]
    return main(words if words in (["-V"], ["--version"]) else ["bench", *words])
