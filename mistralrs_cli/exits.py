"""The exit codes that no error carries: 0 is success, errors bring 1 to 4 themselves."""

INTERRUPTED = 130
"""Ctrl-C."""
CLOSED_OUTPUT = 141
"""Nobody reads stdout any more."""
TERMINATED = 143
"""SIGTERM."""
