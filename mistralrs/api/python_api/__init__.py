"""The Python API: ``Runner`` and ``AsyncRunner``, their requests, answers and streams."""
