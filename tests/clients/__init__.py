"""Clients that nobody here wrote, unmodified, against a real server with the default model.

A client that is not installed is skipped; `make clients` installs all of them and runs these tests.
"""
