"""Completion of command lines in bash, zsh and fish. Imports nothing heavy: a key press waits for it."""
