"""The streams, the keyboard, signals and exit codes."""
