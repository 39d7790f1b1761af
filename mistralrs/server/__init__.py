"""The OpenAI-compatible server: turns HTTP requests into requests of ``api``, and answers of ``api`` into HTTP.

Responsible for connections, routes, limits, keys, streams, metrics and the log. Never deals with tensors, with file
formats or with the meaning of a body's fields: ``api`` checks those and makes the answers. The application is made
without a socket, and ``run`` alone serves it; connections treat requests as bytes, and the log gets ids and JSON.
"""
