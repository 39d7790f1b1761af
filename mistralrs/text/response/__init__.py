"""Answers of a model into their parts: content, reasoning, tool calls.

``response_template`` reads how a model spells these parts, ``response_parser`` splits one answer while it grows into
``pieces``, and ``shipped_templates`` chooses for models that do not say it. Nothing here knows requests, or ids.
"""
