"""The entry point: imports the rest of the program in such a way that Ctrl-C ends it quietly."""

from __future__ import annotations

from mistralrs_cli.exits import leaving_at_once


def start() -> int:
    """Runs the process's command line and returns its exit code."""
    with leaving_at_once():
        from mistralrs_cli.app import main
    return main()
