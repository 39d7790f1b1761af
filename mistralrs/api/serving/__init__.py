"""From bodies, messages and ids to requests for the engine, and from the engine's events to answers.

Server, ``Runner``, terminal and benchmark all come through here. Knows requests and answers; knows no HTTP, no
command line and no engine beyond what it is asked and what it tells.
"""
