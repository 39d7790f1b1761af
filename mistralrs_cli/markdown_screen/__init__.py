"""Draws answers in a terminal: Markdown block by block as it streams, and plain text wrapped at words.

It takes sanitized text and writes to a text stream; it never deals with models, chats or options.
"""
