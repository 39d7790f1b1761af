"""A model behind HTTP: a server that speaks OpenAI's API answers in place of a loaded model.

Responsible for addresses, requests, server-sent events and the errors of servers. Never deals with terminals or files.
"""
