"""Where the command begins: imports the rest so that Ctrl-C ends it quietly even then. Knows nothing else."""

from __future__ import annotations

from mistralrs_cli.exits import leaving_at_once


def start() -> int:
    """Run the process's command line and return its exit code."""
    with leaving_at_once():
        from mistralrs_cli.app import main
    return main()
