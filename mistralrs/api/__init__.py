"""Requests and answers, the table of model selectors, and the client of an engine in this process or in another.

Responsible for everything that the terminal, the server and Python callers share. Never deals with sockets of clients,
with terminals or with tensors; nothing here imports torch before a model is loaded.
"""
