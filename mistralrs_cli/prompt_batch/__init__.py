"""Answers many prompts, a line each, and continues a run that was stopped.

Responsible for reading lines, keeping answers in their order, and the file that they are kept in. Never deals with
models, except through ``mistralrs_cli.model.Model``.
"""
