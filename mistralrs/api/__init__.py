"""Requests and answers, the table of model selectors, and the door to an engine in this process or in another.

Responsible for everything that the terminal, the server and Python callers have in common. Never deals with sockets of
clients, with terminals or with tensors; nothing here imports torch before a model is loaded.
"""
