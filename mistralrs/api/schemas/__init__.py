"""The bodies of requests and answers: fields, types, ranges, and the table of parameters.

Never deals with the effect of a field, which ``serving`` gives it, or with the way in which a body arrived.
"""
