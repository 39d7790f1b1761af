"""The way from a request's body to requests for the engine, and from the engine's events to an answer.

Responsible for templates, ids, sampling parameters, choices and usage. Never deals with HTTP.
"""
