"""Strings to tokens and back: tokenizers, chat templates, streams of text. Knows no model and needs no torch."""
