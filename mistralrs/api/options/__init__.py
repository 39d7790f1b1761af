"""The options of the command, the server and the library: one declaration each, and where their values come from.

Knows names, types, ranges and defaults. Knows no model, no request and no parser of command lines.
"""
