"""The terminal application: a command line becomes one call of ``mistralrs.api``; answers go to stdout, the rest to
stderr.

Responsible for options, the chat, one-shot prompts, output, signals and exit codes. Never deals with the computation of
an answer: ``model.Model`` is its only access to a model, and parsing a command line opens no file.
"""
