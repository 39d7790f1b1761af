"""Tests of the server's page in a real browser."""
