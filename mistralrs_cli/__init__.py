"""The terminal application: a command line becomes one call of ``mistralrs.api``; answers go to stdout, the rest to
stderr.

Responsible for options, the chat, one-shot prompts, output, signals and exit codes. Never deals with the making of an
answer: the one door to a model is ``model.Model``, and parsing a command line opens no file.
"""
