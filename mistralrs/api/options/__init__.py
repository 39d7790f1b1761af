"""The options of the command, the server and the library: one declaration each, and where their values come from.

Responsible for names, types, ranges and defaults. Never deals with models, requests or the parsing of command lines.
"""
