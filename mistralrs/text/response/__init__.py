"""Answers of a model into their parts: content, reasoning, tool calls.

``pieces`` has the parts as they stream; a response template of the model describes how its text spells them.
"""
