"""Splits Markdown that streams into lines that are final and lines that may still change.

It never deals with a terminal or its cursor: `markdown_screen` does, and lays blocks out.
"""
