"""Turns bodies, messages and ids into requests for the engine, and the engine's events into answers.

Server, ``Runner``, terminal and benchmark all use it. Responsible for requests and answers. Never deals with HTTP, with
command lines or with an engine's inner state.
"""
